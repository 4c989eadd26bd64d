"""Counts XLA compilations by program, from JAX's own monitoring events."""

import re
from collections import Counter

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"
PROGRAMS = ("init_population", "train_segment", "evaluate_population")

_compiled: Counter = Counter()
_cache_hits: Counter = Counter()
_loaded = False  # the program being made came from the persistent cache
_listening = False


def start_counting() -> None:
    """Starts counting in this process; calling it again changes nothing."""
    global _listening
    if _listening:
        return
    _listening = True

    def on_duration(event, duration, **facts):
        global _loaded
        del duration
        if event == _COMPILE_EVENT and _loaded:
            _loaded = False  # JAX reports a load as a compilation too
        elif event == _COMPILE_EVENT:
            name = re.sub(r"^jit\((.*)\)$", r"\1", str(facts.get("fun_name", "")))
            _compiled[name.removeprefix("jit_")] += 1

    def on_event(event, **facts):
        global _loaded
        del facts
        if event == _CACHE_HIT_EVENT:
            _cache_hits["all"] += 1
            _loaded = True

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)


def compilations() -> dict[str, int]:
    """Compilations of each named program since counting started, and cache hits of any."""
    return {name: _compiled[name] for name in PROGRAMS} | {"cache_hits": _cache_hits["all"]}
