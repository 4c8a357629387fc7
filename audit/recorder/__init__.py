"""Writes the ledger of a program that runs, and leaves what it computes as it was.

    hook.attach(out=…, previous=…)      at the start of a process; everything else happens by itself

`hook` hears the interpreter's audit events (what it says of itself: `outside`) and knows when training begins; from
then on a `recording` turns announcements (`golf.*`), optimizer steps and forward passes into records. `announced`
translates announcements, `parameters` keeps models and optimizers, `tensors` sums where the tensors are, `queue` waits
for a GPU's numbers, and `story` matches forward passes with draws and writes, in the order of the program.

Nothing is imported here: a process that never trains pays for `hook` and `outside` alone.
"""
