// Messages to bytes and back, as docs/reference/wire-format.md says.

import { decode, encode } from "@msgpack/msgpack";

export const PREFIX = 21;
const MAGIC = [0xa4, 0x6d, 0x61, 0x61, 0x73];
const VERSION = 1;
const ALIGNMENT = 64;
const MAX_BODY = 256 * 2 ** 20;
const KINDS = ["", "call", "result", "failure", "item", "end", "description", "leased"];

// Where JavaScript has no such numbers, the elements are given as their bytes.
const ARRAYS = {
  bool: Uint8Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  float32: Float32Array, float64: Float64Array,
};
const NAMES = new Map(Object.entries(ARRAYS).filter(([name]) => name !== "bool").map(([name, kind]) => [kind, name]));
const SIZES = { float16: 2, bfloat16: 2, complex32: 4, complex64: 8, complex128: 16 };

/** An array of numbers: `data` is a typed array in C order, `shape` an array of lengths. */
export class Tensor {
  constructor(data, shape = [data.length], dtype = NAMES.get(data.constructor), flags = []) {
    Object.assign(this, { data, shape, dtype, flags });
  }
}

/** A Python tuple. */
export class Tuple extends Array {}

/** Any other tagged value, as it came: `new Tag("$decimal", "0.1")`. */
export class Tag {
  constructor(name, payload) {
    Object.assign(this, { name, payload });
  }
}

// Encoding.

/** The bytes of a call. */
export function encodeCall(args, keywords = {}, context = {}) {
  const buffers = [];
  const named = Object.entries(keywords).map(([name, value]) => [name, pack(value, buffers)]);
  return assemble(1, [args.map((value) => pack(value, buffers)), Object.fromEntries(named), context], buffers);
}

/** The bytes of an item, for tests. */
export function encodeItem(value) {
  const buffers = [];
  return assemble(4, [pack(value, buffers)], buffers);
}

function pack(value, buffers) {
  if (value instanceof Tensor) {
    const bytes = new Uint8Array(value.data.buffer, value.data.byteOffset, value.data.byteLength);
    const descriptor = [buffers.push(bytes) - 1, value.dtype, value.shape];
    return { $tensor: value.flags.length ? [...descriptor, value.flags] : descriptor };
  }
  if (ArrayBuffer.isView(value) && !(value instanceof Uint8Array)) return pack(new Tensor(value), buffers);
  if (typeof value === "bigint" && BigInt.asIntN(64, value) !== value && BigInt.asUintN(64, value) !== value) {
    return { $int: twosComplement(value) };
  }
  if (value instanceof Tag) return { [value.name]: pack(value.payload, buffers) };
  if (value instanceof Tuple) return { $tuple: Array.from(value, (item) => pack(item, buffers)) };
  if (Array.isArray(value)) return value.map((item) => pack(item, buffers));
  if (value instanceof Set) return { $set: [...value].map((item) => pack(item, buffers)) };
  if (value instanceof Map) return { $map: packPairs([...value], buffers) };
  if (value !== null && typeof value === "object" && !(value instanceof Uint8Array)) {
    const pairs = Object.entries(value);
    if (pairs.some(([key]) => key.startsWith("$"))) return { $map: packPairs(pairs, buffers) };
    return Object.fromEntries(pairs.map(([key, item]) => [key, pack(item, buffers)]));
  }
  return value;
}

const packPairs = (pairs, buffers) => pairs.map((pair) => pair.map((part) => pack(part, buffers)));

function twosComplement(value) {
  let width = 9;
  while (BigInt.asIntN(8 * width, value) !== value) width += 1;
  const digits = BigInt.asUintN(8 * width, value).toString(16).padStart(2 * width, "0");
  return Uint8Array.from(digits.match(/../g), (byte) => parseInt(byte, 16));
}

function assemble(kind, fields, buffers) {
  const header = encode(fields, { useBigInt64: true });
  const starts = [];
  let total = PREFIX + header.length;
  for (const buffer of buffers) {
    const start = Math.ceil((total + 5) / ALIGNMENT) * ALIGNMENT;
    starts.push(start);
    total = start + buffer.length;
  }
  const message = new Uint8Array(total).fill(0xc0, PREFIX + header.length);
  const view = new DataView(message.buffer);
  message.set([...MAGIC, VERSION, kind, 0xce]);
  view.setUint32(8, header.length);
  message[12] = 0xcf;
  view.setBigUint64(13, BigInt(total));
  message.set(header, PREFIX);
  buffers.forEach((buffer, index) => {
    message[starts[index] - 5] = 0xc6;
    view.setUint32(starts[index] - 4, buffer.length);
    message.set(buffer, starts[index]);
  });
  return message;
}

// Decoding.

/** What the first 21 bytes tell: kind, length of the header, length of the message. */
export function readPrefix(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (!MAGIC.every((byte, index) => bytes[index] === byte)) throw new Error("not a maas message");
  if (bytes[5] !== VERSION) throw new Error(`a message of version ${bytes[5]}; this client speaks ${VERSION}`);
  const [kind, header, total] = [KINDS[bytes[6]], view.getUint32(8), Number(view.getBigUint64(13))];
  if (!kind || total > MAX_BODY || PREFIX + header > total) throw new Error("a broken prefix, or too long a message");
  return { kind, header, total };
}

/** A message as `{ kind, fields }`; `bytes` holds it and nothing else. */
export function decodeMessage(bytes) {
  const { kind, header, total } = readPrefix(bytes);
  if (total !== bytes.length) throw new Error(`the message says ${total} bytes, ${bytes.length} came`);
  // Copied, so that buffers are aligned to 64 bytes in memory as they are in the message.
  const message = bytes.slice();
  const fields = decode(message.subarray(PREFIX, PREFIX + header), { useBigInt64: true });
  const buffers = readBuffers(message, PREFIX + header);
  return { kind, fields: fields.map((field) => unpack(field, buffers)) };
}

function readBuffers(message, position) {
  const view = new DataView(message.buffer);
  const buffers = [];
  while (position < message.length) {
    const start = Math.ceil((position + 5) / ALIGNMENT) * ALIGNMENT;
    if (start > message.length || message[start - 5] !== 0xc6) throw new Error("a broken buffer");
    position = start + view.getUint32(start - 4);
    if (position > message.length) throw new Error("a buffer beyond the message");
    buffers.push(message.subarray(start, position));
  }
  return buffers;
}

const TAGS = {
  $tensor: unpackTensor,
  $array: unpackTensor,
  $tuple: (payload, buffers) => Tuple.from(payload, (item) => unpack(item, buffers)),
  $set: (payload, buffers) => new Set(payload.map((item) => unpack(item, buffers))),
  $map: (payload, buffers) => new Map(payload.map((pair) => pair.map((part) => unpack(part, buffers)))),
  $str: (payload, buffers) => new TextDecoder().decode(buffers[payload]),
  $bytes: (payload, buffers) => buffers[payload],
  $int: (payload) => BigInt.asIntN(8 * payload.length, BigInt(`0x${Buffer.from(payload).toString("hex")}`)),
};

function unpack(value, buffers) {
  if (Array.isArray(value)) return value.map((item) => unpack(item, buffers));
  if (value === null || typeof value !== "object" || value instanceof Uint8Array) return value;
  const pairs = Object.entries(value);
  const [name, payload] = pairs.length === 1 ? pairs[0] : [""];
  if (!name.startsWith("$")) return Object.fromEntries(pairs.map(([key, item]) => [key, unpack(item, buffers)]));
  return Object.hasOwn(TAGS, name) ? TAGS[name](payload, buffers) : new Tag(name, unpack(payload, buffers));
}

function unpackTensor([index, dtype, shape, flags = []], buffers) {
  const bytes = buffers[index];
  const kind = ARRAYS[dtype] ?? Uint8Array;
  const size = ARRAYS[dtype] ? kind.BYTES_PER_ELEMENT : (SIZES[dtype] ?? 1);
  if (shape.reduce((product, length) => product * Number(length), size) !== bytes.length) {
    throw new Error(`${dtype}[${shape}] does not take ${bytes.length} bytes`);
  }
  const data = new kind(bytes.buffer, bytes.byteOffset, bytes.length / kind.BYTES_PER_ELEMENT);
  return new Tensor(data, shape, dtype, flags);
}
