"""Model files: where they are kept, how they are fetched, how nodes give them to each other.

`source` what may be pulled, `hub`, `web` and `local` where it comes from (each makes a `plan`), `choosing` what of a
repository is needed, `pull` one pull and `pulls` all of them, `transfer` the fetching itself, by `pieces` from several
sources at once (`neighbour`, `remote`) into an `assembly` that checks them, `store` the folder, `door` the giving side,
`wire` what runs between two nodes, `service` what is asked over the bus.
Threads do what touches files and sockets; the daemon's loop only hears how far they are.
"""
