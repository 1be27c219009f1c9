// COPY .. FROM STDIN: finding it in an SQL text, and holding the data that the client sends.

import { COPY_DEVICE } from "./engine.mjs";

const NAME_START = /[A-Za-z_\u0080-\uffff]/;
const NAME_PART = /[A-Za-z0-9_$\u0080-\uffff]/;

// Splits SQL into words, quoted texts and punctuation, without comments and white space.
function* tokens(sql) {
  let at = 0;
  while (at < sql.length) {
    const start = at;
    const rest = sql[at] + (sql[at + 1] ?? "");
    if (/\s/.test(sql[at])) {
      at += 1;
      continue;
    }
    if (rest === "--") {
      const end = sql.indexOf("\n", at);
      at = end < 0 ? sql.length : end;
      continue;
    }
    if (rest === "/*") {
      let depth = 1;
      at += 2;
      while (at < sql.length && depth > 0) {
        if (sql.startsWith("/*", at)) depth += 1;
        else if (sql.startsWith("*/", at)) depth -= 1;
        else {
          at += 1;
          continue;
        }
        at += 2;
      }
      continue;
    }
    const dollar = sql[at] === "$" && /^\$([A-Za-z_]\w*)?\$/.exec(sql.slice(at, at + 70));
    if (dollar) {
      const end = sql.indexOf(dollar[0], at + dollar[0].length);
      at = end < 0 ? sql.length : end + dollar[0].length;
      yield { kind: "quoted", start, end: at };
    } else if (sql[at] === "'" || sql[at] === '"' || /^e'/i.test(rest)) {
      const escapes = /^e'/i.test(rest);
      if (escapes) at += 1;
      const quote = sql[at];
      at += 1;
      while (at < sql.length && sql[at] !== quote) at += escapes && sql[at] === "\\" ? 2 : 1;
      at += 1; // A doubled quote reads as two quoted texts side by side, which is as good here.
      yield { kind: "quoted", start, end: at };
    } else if (NAME_START.test(sql[at])) {
      while (at < sql.length && NAME_PART.test(sql[at])) at += 1;
      yield { kind: "word", start, end: at, word: sql.slice(start, at).toUpperCase() };
    } else {
      at += 1;
      yield { kind: sql[start], start, end: at };
    }
  }
}

// Returns null when the text has no COPY .. FROM STDIN, else
// {sql, binary, columns}: the same statement reading from the device, whether its format is
// binary, and how many columns it names (0 when it names none); or
// {unsupported: reason} when it shares its text with other statements.
export function parseCopyFromStdin(sql) {
  // Nearly every statement leaves here.
  if (!/\bstdin\b/i.test(sql)) return null;
  const statements = [[]];
  for (const token of tokens(sql)) {
    if (token.kind === ";") statements.push([]);
    else statements.at(-1).push(token);
  }
  const filled = statements.filter((statement) => statement.length > 0);
  for (const statement of filled) {
    const stdin = findStdin(statement);
    if (!stdin) continue;
    if (filled.length > 1) {
      return { unsupported: "COPY FROM STDIN has to be the only statement of its query here" };
    }
    const words = statement.map((token) => token.word);
    return {
      sql: `${sql.slice(0, stdin.token.start)}'${COPY_DEVICE}'${sql.slice(stdin.token.end)}`,
      binary: words[1] === "BINARY" || words.includes("BINARY", stdin.index + 1),
      columns: countColumns(statement.slice(0, stdin.index)),
    };
  }
  return null;
}

function findStdin(statement) {
  if (statement[0].word !== "COPY") return null;
  let depth = 0;
  for (const [index, token] of statement.entries()) {
    if (token.kind === "(") depth += 1;
    else if (token.kind === ")") depth -= 1;
    else if (depth === 0 && token.word === "STDIN" && statement[index - 1].word === "FROM") {
      return { index, token };
    }
  }
  return null;
}

function countColumns(statement) {
  if (!statement.some((token) => token.kind === "(")) return 0;
  return 1 + statement.filter((token) => token.kind === ",").length;
}

// The payloads of the client's CopyData messages, read once from the front. They are never joined.
export class CopyData {
  #chunks = [];
  #chunk = 0;
  #offset = 0;

  add(bytes) {
    this.#chunks.push(bytes);
  }

  read(target, start, length) {
    let done = 0;
    while (done < length && this.#chunk < this.#chunks.length) {
      const chunk = this.#chunks[this.#chunk];
      const part = chunk.subarray(this.#offset, this.#offset + length - done);
      target.set(part, start + done);
      done += part.length;
      this.#offset += part.length;
      if (this.#offset === chunk.length) {
        this.#chunks[this.#chunk] = null; // Lets the memory go while the rest is still read.
        this.#chunk += 1;
        this.#offset = 0;
      }
    }
    return done;
  }
}
