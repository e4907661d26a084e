// What `nats micro ping | info | stats` sees (ADR-32), through the library of NATS.

import { Svcm } from "@nats-io/services";

export async function discover(nc, given) {
  const client = new Svcm(nc).client({ strategy: "stall", maxWait: 2000 });
  const all = async (answers) => {
    const found = [];
    for await (const answer of await answers) found.push(answer);
    return found;
  };
  const [ping, info, stats] = await Promise.all(
    ["ping", "info", "stats"].map((verb) => all(client[verb](given.name ?? "", given.id ?? ""))),
  );
  return { ping, info, stats };
}
