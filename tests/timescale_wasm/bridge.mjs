// A TCP server for the WebAssembly engine: node bridge.mjs --port 0
//
// Prints {"port", "pid"} on one line when it is ready, and ends with its standard input or SIGTERM.
// Standard input takes one command a line, answered by one line of JSON once no client is connected:
//   snapshot NAME   keep the database as it is
//   restore NAME    bring it back
//   reset           bring back the empty database (TimescaleDB is created)
//
// The engine has one session, so connections are serialised: a client that starts while another one
// is connected waits for its turn.

import net from "node:net";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

import { Engine } from "./engine.mjs";
import { Session, errorMessage } from "./session.mjs";

const PROTOCOL_3 = 3;
const SSL_REQUEST = 80_877_103;
const GSS_REQUEST = 80_877_104;
const CANCEL_REQUEST = 80_877_102;

const { values: options } = parseArgs({
  options: {
    host: { type: "string", default: "127.0.0.1" },
    port: { type: "string", default: "0" },
    // A test that holds one connection and asks for a second one would wait for ever.
    "queue-timeout-s": { type: "string", default: "30" },
    // How long a command waits for the last client to go, before it fails and disconnects that client.
    "idle-timeout-s": { type: "string", default: "5" },
  },
});
const queueTimeoutMs = 1000 * Number(options["queue-timeout-s"]);
const idleTimeoutMs = 1000 * Number(options["idle-timeout-s"]);

// Cuts a byte stream into messages. Bytes are joined only once a whole message has arrived, so a
// message of any size costs one copy.
class Framer {
  #chunks = [];
  #bytes = 0;

  add(chunk) {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
  }

  // The next message, or null. A startup message has no type byte before its length.
  next(startup) {
    const lengthAt = startup ? 0 : 1;
    if (this.#bytes < lengthAt + 4) return null;
    if (this.#chunks[0].length < lengthAt + 4) this.#join();
    const length = this.#chunks[0].readUInt32BE(lengthAt) + lengthAt;
    if (this.#bytes < length) return null;
    if (this.#chunks[0].length < length) this.#join();
    const [first] = this.#chunks;
    if (first.length === length) this.#chunks.shift();
    else this.#chunks[0] = first.subarray(length);
    this.#bytes -= length;
    return first.subarray(0, length);
  }

  #join() {
    this.#chunks = [Buffer.concat(this.#chunks)];
  }
}

// Gives the engine to one client at a time, and to commands in between.
class Turns {
  #active = null;
  #clients = [];
  #commands = [];

  get holder() {
    return this.#active;
  }

  enter(client) {
    this.#clients.push(client);
    this.#next();
  }

  leave(client) {
    this.#clients = this.#clients.filter((waiting) => waiting !== client);
    if (this.#active === client) this.#active = null;
    this.#next();
  }

  command(run, expire) {
    const entry = { run };
    entry.timer = setTimeout(() => {
      this.#commands = this.#commands.filter((waiting) => waiting !== entry);
      expire();
    }, idleTimeoutMs);
    this.#commands.push(entry);
    this.#next();
  }

  #next() {
    if (this.#active) return;
    const command = this.#commands.shift();
    if (command) {
      clearTimeout(command.timer);
      command.run();
      this.#next();
      return;
    }
    this.#active = this.#clients.shift() ?? null;
    this.#active?.begin();
  }
}

class Client {
  #framer = new Framer();
  #socket;
  #session = null; // exists once the startup message was read
  #open = false; // the session is ours
  #left = false;
  #timer = null;

  constructor(socket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on("data", (chunk) => {
      this.#framer.add(chunk);
      this.#pump();
    });
    socket.on("error", () => socket.destroy());
    socket.on("close", () => this.end());
  }

  get name() {
    return this.#session.name;
  }

  // Our turn has come.
  begin() {
    clearTimeout(this.#timer);
    this.#guard(() => {
      this.#open = true;
      if (this.#session.open()) this.#pump();
      else this.end();
    });
  }

  // The session is over from here on, even if the client keeps its side of the socket open.
  end(lastWords = "") {
    if (this.#left) return;
    this.#left = true;
    clearTimeout(this.#timer);
    if (lastWords) this.#socket.write(lastWords);
    this.#socket.destroySoon();
    if (this.#open) this.#guard(() => this.#session.close());
    turns.leave(this);
  }

  #pump() {
    this.#guard(() => {
      while (!this.#left && (this.#open || !this.#session)) {
        const bytes = this.#framer.next(!this.#session);
        if (!bytes) return;
        if (!this.#session) this.#startup(bytes);
        else if (!this.#session.handle(bytes)) this.end();
      }
    });
  }

  #startup(bytes) {
    const code = bytes.length >= 8 ? bytes.readUInt32BE(4) : 0;
    if (code === SSL_REQUEST || code === GSS_REQUEST) {
      this.#socket.write("N");
    } else if (code === CANCEL_REQUEST) {
      this.end(); // Nothing can be cancelled: a query runs to its end before this is read.
    } else if (code >>> 16 !== PROTOCOL_3) {
      this.end(errorMessage("0A000", "unsupported frontend protocol"));
    } else {
      const words = bytes.toString("utf8", 8).split("\0");
      const parameters = new Map();
      for (let at = 0; words[at]; at += 2) parameters.set(words[at], words[at + 1]);
      this.#session = new Session(engine, parameters, (buffers) => this.#send(buffers));
      this.#timer = setTimeout(() => {
        const text = `the test engine has one session, and ${turns.holder?.name} holds it`;
        this.end(errorMessage("53300", text));
      }, queueTimeoutMs);
      turns.enter(this);
    }
  }

  #send(buffers) {
    this.#socket.cork();
    for (const buffer of buffers) this.#socket.write(buffer);
    this.#socket.uncork();
  }

  // A crash of the engine ends the session, not the bridge: a snapshot can still be restored.
  #guard(action) {
    try {
      action();
    } catch (error) {
      console.error(error);
      this.end(errorMessage("XX000", `${error.message}: restore a snapshot or reset`));
    }
  }
}

function command(line) {
  const [verb, name, ...rest] = line.trim().split(/\s+/);
  const reply = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
  const actions = {
    snapshot: () => engine.snapshot(name),
    restore: () => engine.restore(name),
    reset: () => engine.restore("base"),
  };
  if (!Object.hasOwn(actions, verb) || rest.length > 0 || (verb === "reset") !== !name) {
    reply({ error: `no such command: ${line}` });
  } else if (verb === "snapshot" && name === "base") {
    reply({ error: "the snapshot 'base' is the empty database" });
  } else if (verb === "restore" && !engine.has(name)) {
    reply({ error: `no snapshot is named ${name}` });
  } else {
    turns.command(
      () => {
        const start = performance.now();
        try {
          actions[verb]();
          reply({ [verb]: name ?? true, ms: Math.round(performance.now() - start) });
        } catch (error) {
          reply({ error: error.message });
        }
      },
      () => {
        const { holder } = turns;
        reply({ error: `${holder?.name} was still connected (it is disconnected now)` });
        holder?.end();
      },
    );
  }
}

const engine = await Engine.start();
const turns = new Turns();
const server = net.createServer((socket) => new Client(socket));
server.listen(Number(options.port), options.host, () => {
  process.stdout.write(`${JSON.stringify({ port: server.address().port, pid: process.pid })}\n`);
});
createInterface({ input: process.stdin })
  .on("line", command)
  .on("close", () => process.exit(0));
process.on("SIGTERM", () => process.exit(0));
