// Requests as any program sends them: one reply, a stream of replies, many at once.

import { createInbox } from "@nats-io/transport-node";
import { bodyOf, described, headersOf, typeOf } from "./body.mjs";

export async function request(nc, given) {
  const options = { timeout: given.timeout_ms ?? 20_000, headers: headersOf(given) };
  return described(await nc.request(given.subject, bodyOf(given), options));
}

export async function publish(nc, given) {
  nc.publish(given.subject, bodyOf(given), { headers: headersOf(given) });
  await nc.flush();
}

// Every message up to the empty one or an error, and those of the next `linger_ms`, which should be none.
export async function stream(nc, given) {
  const inbox = createInbox(nc.options.inboxPrefix);
  const messages = [];
  const subscription = nc.subscribe(inbox);
  const late = setTimeout(() => subscription.unsubscribe(), given.timeout_ms ?? 20_000);
  nc.publish(given.subject, bodyOf(given), { reply: inbox, headers: headersOf(given) });
  for await (const msg of subscription) {
    messages.push(described(msg, typeOf(given)));
    if (msg.data.length === 0) setTimeout(() => subscription.unsubscribe(), given.linger_ms ?? 150);
  }
  clearTimeout(late);
  return messages;
}

// The same through the library's own request-many, which takes an empty message as the end.
export async function sentinel(nc, given) {
  const options = { strategy: "sentinel", maxWait: given.timeout_ms ?? 20_000, headers: headersOf(given) };
  const messages = [];
  for await (const msg of await nc.requestMany(given.subject, bodyOf(given), options)) messages.push(described(msg));
  return messages;
}

// `count` requests at once; `{n}` in the text becomes the number of each.
export async function flood(nc, given) {
  const one = (n) => request(nc, { ...given, text: given.text.replaceAll("{n}", `${n}`) });
  return await Promise.all(Array.from({ length: given.count }, (_, n) => one(n)));
}
