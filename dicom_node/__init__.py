"""A DICOM node that completes studies. This is the map: one study, step by step, file by file.

 1. `receiver` lets a connection in (`admission`) and hands it to a process of its `crew` (`hall`,
    `acceptor`), where it is served (`session`, `services`) in the protocol (`upper_layer`, `wire`,
    `association`, `command`). What comes is checked (`structure`, `notices`), and `spool` makes it
    durable in the `store` …
 2. … and `recorder` makes it known to the `ledger`, or `spool` will after a crash. Only then is the
    sender told success.
 3. `assembly` takes studies that are quiet, tells their volumes apart (`headers`, `series`,
    `geometry`) and labels them (`contrast`, in doubt `appearance`), with evidence or not at all;
    `progress` says what peers tell of when a study is whole.
 4. `routing` finds which rules match and what is missing (`slots`, `rules`, `conditions`); `query`
    asks the PACS whether it really is, and fetches what was not sent: a `conversation` over DIMSE
    (`dimse_conversation`) or DICOMweb (`web_conversation`, `qido`, `wado`). `elsewhere` puts its
    answer beside,
 5. and plans what to make of what (`planning`, `candidates`) with which model, or says why not.
 6. The judgement, its plans and refusals are one commit; a late instance opens the study again.
 7. `dispatch` claims a queued job and gives it to a worker process (`executors`).
 8. `work` reads the sources as volumes (`volumes`, `pixels`),
 9. has them synthesized (`synthesis.engine`, the only place where pixels change),
10. and writes the derived series (`derive`, `images`, `provenance`, `references`, `report`), which
    `conformance` checks.
11. The result and its deliveries are one commit, fenced by the attempt; what the quality gate
    refuses is held for a person.
12. `delivery` and `courier` store each instance at each peer and keep the status that it gave
    (`outcomes`); `confirmation` asks the peer whether it keeps it (`commitment`, `attributes`).
13. `retention` deletes bytes in time; rows and events stay.

A study may also be wanted done: `performer` claims the steps of a `worklist`, sees to it that their
studies come, and tells what came of them.

`node` builds all of it, `timers` let the sweeps tick, and `warmth` has the models ready before the
first job. `cli` is the command line, with `explain`, `backfill`, `status` and `doctor` behind it,
and `admin` the page; what a person decides at either goes through `decisions`. `settings` reads
`config/`, and `live_rules` takes what changes in it; `domain` and `jobs` hold the words and states
that all of them share. A result that is not wanted any more is taken back (`withdrawal`). Each step
reads what the one before it has committed, so that a crash anywhere resumes.
"""

__version__ = "0.1.0"
