// What `nats object ls | info | get` sees (ADR-20), through the library of NATS, which checks the digest itself.

import { createHash } from "node:crypto";
import { jetstream } from "@nats-io/jetstream";
import { Objm } from "@nats-io/obj";

export async function object(nc, given) {
  const bucket = await new Objm(jetstream(nc, { domain: given.domain })).open(given.bucket);
  const found = await bucket.get(given.name);
  if (found === null) return null;
  const hash = createHash("sha256");
  let size = 0;
  for await (const chunk of found.data) {
    hash.update(chunk);
    size += chunk.length;
  }
  const failure = await found.error;
  if (failure) throw failure;
  const names = (await bucket.list()).map((info) => info.name);
  return { size, sha256: hash.digest("hex"), names, info: { size: found.info.size, mtime: found.info.mtime } };
}
