"""Every place where we touch vLLM's internals, and what we know about its versions.

`registration.install` runs in each vLLM process. It registers names, and hooks the few places that vLLM has no
extension point for (the functions `hook_*` and `correct_*`); each hook is applied once, changes nothing unless a
head of ours is in use (the CPU sampler correction excepted, which only repairs), and is checked against the vLLM it
meets. `running` is the way into an engine that is up, `synthetic` a repair that only benchmarks ask for.
"""
