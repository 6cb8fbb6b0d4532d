"""The warden: one small program per state folder that runs tasks and keeps them while no control plane is there.

It may know the standard library and nothing else, so that the folder can be copied to any host with Python 3.11,
together with `sandbox`, the one program in it that is compiled, and the file that `volumes` reads. It is started as
`from warden.serve import main`. Read in this order: `serve` (verbs), `house` (all runs), `run` (one run), `spawn` and
`sandbox.c` (the sandbox), `ready` and `spares` (what is made beforehand), then what they stand on: `journal`, `groups`,
`logs`, `files`, `beside`, `network`, `volumes`, `seccomp`, `loop`, `kernel`.

What outlives the warden: a run is a process of its own, says what it says into pipes that it holds open itself, and
leaves its exit code in a file that the first process of its sandbox writes. The next warden adopts it from its folder.
"""
