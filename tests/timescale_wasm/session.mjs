// One client's session: what PostgreSQL does between the socket and the parser.

import { CopyData, parseCopyFromStdin } from "./copy.mjs";
import { message, queryMessage } from "./engine.mjs";

// What asyncpg, psycopg and libpq read from a new connection.
const REPORTED_SETTINGS = [
  "application_name",
  "client_encoding",
  "DateStyle",
  "default_transaction_read_only",
  "in_hot_standby",
  "integer_datetimes",
  "IntervalStyle",
  "is_superuser",
  "search_path",
  "server_encoding",
  "server_version",
  "session_authorization",
  "standard_conforming_strings",
  "TimeZone",
];
const EXTENDED_PROTOCOL = "PBDECF";
const DATABASE = "postgres";
const SUPERUSER = "postgres";

let sessions = 0;

export class Session {
  #engine;
  #send;
  #parameters;
  #copy = null; // the COPY .. FROM STDIN that the client is sending data for
  #copyStatements = new Map(); // name of a prepared statement -> its COPY .. FROM STDIN
  #copyPortals = new Map();
  #failed = false; // an extended-protocol message failed: everything up to Sync is skipped
  #unsynced = false; // extended-protocol messages since the last Sync
  #status = "I";
  #scanner = new AnswerScanner();

  constructor(engine, parameters, send) {
    this.#engine = engine;
    this.#parameters = parameters;
    this.#send = send;
    sessions += 1;
    this.id = sessions;
  }

  get name() {
    return this.#parameters.get("application_name") ?? "a client without application_name";
  }

  // Answers the startup message; false when the session was refused.
  open() {
    const { user, database = user, options = "", ...settings } = Object.fromEntries(
      this.#parameters,
    );
    if (database !== DATABASE) {
      return this.#refuse("3D000", `database "${database}" does not exist (only "${DATABASE}")`);
    }
    for (const [, name, value] of options.matchAll(/(?:-c\s*|--)([\w.-]+)=((?:\\.|[^\s\\])*)/g)) {
      settings[name.replaceAll("-", "_")] = value.replaceAll(/\\(.)/g, "$1");
    }
    const statements = Object.entries(settings)
      .filter(([name]) => name !== "replication" && !name.startsWith("_pq_."))
      .map(([name, value]) => `SELECT set_config(${literal(name)}, ${literal(value)}, false)`);
    if (user !== SUPERUSER) {
      statements.push(`SET SESSION AUTHORIZATION "${user.replaceAll('"', '""')}"`);
    }
    for (const statement of statements) {
      const answer = Buffer.concat(this.#run(queryMessage(statement)));
      if (this.#scanner.error) {
        const { C: code, M: text } = errorFields(firstOfType("E", answer));
        return this.#refuse(code, text);
      }
    }
    const values = REPORTED_SETTINGS.map((name) => `current_setting('${name}')`);
    const answer = Buffer.concat(this.#run(queryMessage(`SELECT ${values.join(", ")}`)));
    const row = rowValues(firstOfType("D", answer));
    const key = Buffer.alloc(8);
    key.writeInt32BE(this.id);
    this.#send([
      message("R", Buffer.alloc(4)),
      ...REPORTED_SETTINGS.map((name, index) =>
        message("S", Buffer.from(`${name}\0${row[index]}\0`)),
      ),
      message("K", key),
      message("Z", Buffer.from("I")),
    ]);
    return true;
  }

  // Leaves the engine as a new session would find it.
  close() {
    if (this.#engine.broken) return;
    this.#copy = null;
    if (this.#unsynced) {
      // A Sync alone would commit what the client never committed.
      if (!this.#failed) this.#run(parseMessage("", "unfinished"));
      this.#run(message("S", Buffer.alloc(0)));
    }
    if (this.#status !== "I") this.#run(queryMessage("ROLLBACK"));
    // This build has no default session user for DISCARD ALL to return to.
    this.#run(queryMessage(`SET SESSION AUTHORIZATION ${SUPERUSER}`));
    this.#run(queryMessage("DISCARD ALL"));
  }

  // Handles one whole message; false when the session is over.
  handle(bytes) {
    const type = String.fromCharCode(bytes[0]);
    if (type === "X") return false;
    if (this.#copy) return this.#handleCopy(type, bytes);
    if (EXTENDED_PROTOCOL.includes(type)) return this.#handleExtended(type, bytes);
    switch (type) {
      case "Q":
        if (!this.#failed) this.#query(bytes);
        return true;
      case "S":
        this.#failed = false;
        this.#unsynced = false;
        this.#forward(bytes);
        return true;
      case "H": // Answers are never held back, so there is nothing to flush.
      case "d": // A client may still be sending data for a COPY that has failed.
      case "c":
      case "f":
        return true;
      default:
        return this.#refuse("08P01", `invalid frontend message type ${bytes[0]}`);
    }
  }

  #query(bytes) {
    const copy = parseCopyFromStdin(textAt(bytes, 5));
    if (!copy) {
      this.#forward(bytes);
    } else if (copy.unsupported) {
      this.#failQuery("0A000", copy.unsupported);
    } else if (this.#status === "E") {
      // Refused before any data is asked for.
      this.#forward(queryMessage(copy.sql));
    } else {
      this.#beginCopy(copy, queryMessage(copy.sql));
    }
  }

  #handleExtended(type, bytes) {
    if (this.#failed) return true;
    this.#unsynced = true;
    let forwarded = bytes;
    if (type === "P") {
      const name = textAt(bytes, 5);
      const sqlStart = 5 + Buffer.byteLength(name) + 1;
      const sql = textAt(bytes, sqlStart);
      const copy = parseCopyFromStdin(sql);
      this.#copyStatements.delete(name);
      if (copy?.unsupported) {
        this.#failExtended("0A000", copy.unsupported);
        return true;
      }
      if (copy) {
        forwarded = parseMessage(name, copy.sql, bytes.subarray(sqlStart + Buffer.byteLength(sql) + 1));
        this.#copyStatements.set(name, copy);
      }
    } else if (type === "B") {
      const portal = textAt(bytes, 5);
      const statement = textAt(bytes, 5 + Buffer.byteLength(portal) + 1);
      const copy = this.#copyStatements.get(statement);
      if (copy) this.#copyPortals.set(portal, copy);
      else this.#copyPortals.delete(portal);
    } else if (type === "E") {
      const copy = this.#copyPortals.get(textAt(bytes, 5));
      if (copy && this.#status !== "E") {
        this.#beginCopy(copy, bytes);
        return true;
      }
    }
    this.#forward(forwarded);
    if (this.#scanner.error) this.#failed = true;
    return true;
  }

  #beginCopy(copy, execute) {
    this.#copy = { data: new CopyData(), execute };
    const format = Number(copy.binary);
    const body = Buffer.alloc(3 + 2 * copy.columns);
    body.writeInt8(format);
    body.writeInt16BE(copy.columns, 1);
    for (let column = 0; column < copy.columns; column += 1) {
      body.writeInt16BE(format, 3 + 2 * column);
    }
    this.#send([message("G", body)]);
  }

  #handleCopy(type, bytes) {
    const { data, execute } = this.#copy;
    const extended = execute[0] !== "Q".charCodeAt(0);
    const fail = (code, text) => {
      this.#copy = null;
      if (extended) this.#failExtended(code, text);
      else this.#failQuery(code, text);
      return true;
    };
    switch (type) {
      case "d":
        data.add(bytes.subarray(5));
        return true;
      case "H": // PostgreSQL ignores both while it reads COPY data.
      case "S":
        return true;
      case "c":
        this.#copy = null;
        this.#forward(execute, data);
        if (extended && this.#scanner.error) this.#failed = true;
        return true;
      case "f":
        return fail("57014", `COPY from stdin failed: ${textAt(bytes, 5)}`);
      default:
        return fail("08P01", `unexpected message type 0x${bytes[0].toString(16)} during COPY`);
    }
  }

  // An error of our own has to abort the engine's transaction too, so the engine raises it.
  #failQuery(code, text) {
    this.#forward(queryMessage(raise(code, text)));
  }

  #failExtended(code, text) {
    const name = `copy_failure_${this.id}_${Math.random()}`;
    const answers = [
      ...this.#run(parseMessage(name, raise(code, text))),
      ...this.#run(message("B", Buffer.from(`\0${name}\0\0\0\0\0\0\0`))),
      ...this.#run(message("E", Buffer.from("\0\0\0\0\0"))),
    ];
    this.#failed = true;
    this.#unsynced = true;
    // The client did not send these messages: it sees the error only.
    this.#send([firstOfType("E", Buffer.concat(answers))]);
  }

  #forward(bytes, copySource) {
    this.#send(this.#run(bytes, copySource));
  }

  #run(bytes, copySource) {
    const answer = this.#engine.execute(bytes, copySource);
    this.#scanner.scan(answer);
    this.#status = this.#scanner.status;
    return answer;
  }

  #refuse(code, text) {
    this.#send([errorMessage(code, text)]);
    return false;
  }
}

// Finds ErrorResponse and the transaction status in answers, whose buffers may cut a message anywhere.
class AnswerScanner {
  status = "I";
  error = false; // whether the last answer had an ErrorResponse

  scan(buffers) {
    this.error = false;
    const header = Buffer.alloc(6);
    let headerBytes = 0;
    let skip = 0;
    for (const buffer of buffers) {
      let at = 0;
      while (at < buffer.length) {
        if (skip > 0) {
          const step = Math.min(skip, buffer.length - at);
          skip -= step;
          at += step;
          continue;
        }
        header[headerBytes] = buffer[at];
        headerBytes += 1;
        at += 1;
        const ready = header[0] === 0x5a; // "Z"
        if (headerBytes < (ready ? 6 : 5)) continue;
        if (ready) this.status = String.fromCharCode(header[5]);
        else skip = header.readInt32BE(1) - 4;
        if (header[0] === 0x45) this.error = true; // "E"
        headerBytes = 0;
      }
    }
  }
}

export function errorMessage(code, text) {
  return message("E", Buffer.from(`SFATAL\0VFATAL\0C${code}\0M${text}\0\0`));
}

function parseMessage(name, sql, parameterTypes = Buffer.alloc(2)) {
  return message("P", Buffer.concat([Buffer.from(`${name}\0${sql}\0`), parameterTypes]));
}

function raise(code, text) {
  const body = `BEGIN RAISE EXCEPTION USING ERRCODE = ${literal(code)}, MESSAGE = ${literal(text)}; END`;
  return `DO ${literal(body)}`;
}

function literal(text) {
  return `E'${text.replaceAll("\\", "\\\\").replaceAll("'", "''")}'`;
}

function textAt(bytes, start) {
  const end = bytes.indexOf(0, start);
  return bytes.toString("utf8", start, end < 0 ? bytes.length : end);
}

function* messages(answer) {
  for (let at = 0; at < answer.length; ) {
    const end = at + 1 + answer.readInt32BE(at + 1);
    yield { type: String.fromCharCode(answer[at]), bytes: answer.subarray(at, end) };
    at = end;
  }
}

function firstOfType(wanted, answer) {
  for (const { type, bytes } of messages(answer)) {
    if (type === wanted) return bytes;
  }
  throw new Error(`the engine's answer has no message of type ${wanted}`);
}

// The fields of an ErrorResponse, by their one-letter names.
function errorFields(bytes) {
  const fields = bytes.toString("utf8", 5).split("\0");
  return Object.fromEntries(fields.map((field) => [field[0], field.slice(1)]));
}

// The values of a DataRow without NULLs, as texts.
function rowValues(bytes) {
  const values = [];
  for (let at = 7; values.length < bytes.readInt16BE(5); ) {
    const end = at + 4 + bytes.readInt32BE(at);
    values.push(bytes.toString("utf8", at + 4, end));
    at = end;
  }
  return values;
}
