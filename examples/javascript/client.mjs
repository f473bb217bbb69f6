// A maas client: node client.mjs http://127.0.0.1:8000/net 1 2 3

import { pathToFileURL } from "node:url";

import { decodeMessage, encodeCall, PREFIX, readPrefix, Tensor } from "./message.mjs";

const MSGPACK = "application/vnd.msgpack";

/** What the model raised, or the server: `names` of its classes, nearest first, and its `args`. */
export class MaasError extends Error {
  constructor({ names, args, notes = [] }) {
    super(`${names[0]}: ${args.join(", ")}`);
    Object.assign(this, { names, args, notes });
  }
}

/** Arguments by name, as the last of a call: `call(url, "hello", keywords({ lower: true }))`. */
export const keywords = (named) => Object.assign(Object.create(Keywords.prototype), named);
class Keywords {}

/** What a model at `url` takes, or all models at the server's own address. */
export async function describe(url, { key } = {}) {
  const reply = await fetch(url, { headers: { accept: MSGPACK, ...authorization(key) } });
  return (await whole(reply)).fields[0];
}

/** The model's answer. Typed arrays travel as tensors; `new Tensor(data, shape)` gives them a shape. */
export const call = (url, ...args) => callWith({}, url, ...args);

/** The same with `{ key, timeout }`, the timeout in seconds. */
export async function callWith(options, url, ...args) {
  return (await whole(await post(options, url, args))).fields[0];
}

/** The items of a model that streams, as they come: `for await (const item of stream(url, 3))`. */
export async function* stream(url, ...args) {
  const reply = await post({}, url, args);
  if (!isPacked(reply)) await whole(reply);
  let waiting = new Uint8Array();
  for await (const chunk of reply.body) {
    waiting = Buffer.concat([waiting, chunk]);
    while (waiting.length >= PREFIX && waiting.length >= readPrefix(waiting).total) {
      const { total } = readPrefix(waiting);
      const { kind, fields } = checked(decodeMessage(waiting.subarray(0, total)));
      waiting = waiting.subarray(total);
      if (kind === "end") return;
      yield fields[0];
    }
  }
  throw new Error("the stream ended without its final message");
}

function post({ key, timeout }, url, args) {
  const named = args.at(-1) instanceof Keywords ? args.pop() : {};
  return fetch(url, {
    method: "POST",
    headers: { "content-type": MSGPACK, ...authorization(key) },
    body: encodeCall(args, named, timeout ? { deadline: timeout } : {}),
    signal: timeout ? AbortSignal.timeout(1000 * timeout) : undefined,
  });
}

const authorization = (key) => (key ? { authorization: `Bearer ${key}` } : {});
const isPacked = (reply) => reply.headers.get("content-type") === MSGPACK;

async function whole(reply) {
  if (!isPacked(reply)) throw new Error(`${reply.status}: ${await reply.text()}`);
  return checked(decodeMessage(new Uint8Array(await reply.arrayBuffer())));
}

function checked(message) {
  if (message.kind === "failure") throw new MaasError(message.fields[0]);
  return message;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [url, ...numbers] = process.argv.slice(2);
  console.log(numbers.length ? await call(url, new Tensor(Float32Array.from(numbers, Number))) : await describe(url));
}
