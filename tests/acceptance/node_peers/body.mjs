// Bodies of requests from what a test says, and what a test may know of a reply.

import { decode, encode } from "@msgpack/msgpack";
import { headers } from "@nats-io/transport-node";
import { ServiceError } from "@nats-io/services";

// One of: json, msgpack (with its Content-Type), text, base64, or fill (that many characters, `x` or `with`).
export function bodyOf(given) {
  if (given.json !== undefined) return JSON.stringify(given.json);
  if (given.msgpack !== undefined) return encode(given.msgpack);
  if (given.base64 !== undefined) return Buffer.from(given.base64, "base64");
  if (given.fill !== undefined) return (given.with ?? "x").repeat(given.fill);
  return given.text ?? "";
}

export function typeOf(given) {
  return given.msgpack !== undefined ? "application/msgpack" : "application/json";
}

export function headersOf(given) {
  const all = { ...given.headers };
  if (given.msgpack !== undefined) all["Content-Type"] ??= "application/msgpack";
  if (Object.keys(all).length === 0) return undefined;
  const found = headers();
  for (const [key, value] of Object.entries(all)) found.set(key, value);
  return found;
}

// `type` is that of the request, for a reply that does not say its own.
export function described(msg, type) {
  const found = { size: msg.data.length, headers: {}, body: null, error: null };
  for (const [key, values] of msg.headers ?? []) found.headers[key] = values.join(", ");
  if (msg.data.length > 0) found.body = bodyOfReply(msg, found.headers["Content-Type"] ?? type);
  const error = ServiceError.isServiceError(msg) ? ServiceError.toServiceError(msg) : null;
  if (error) found.error = { code: error.code, message: error.message };
  return found;
}

function bodyOfReply(msg, type) {
  return type === "application/msgpack" ? decode(msg.data) : msg.json();
}
