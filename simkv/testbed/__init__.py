"""Real replays beside simulated ones: the only package that imports both the simulator and the profiler.

Read in this order: ``plan.py`` (what is asked for), ``bench.py`` (contexts, questions, traces), ``payloads.py`` and
``folder.py`` (real bytes in memory and on disk), ``server.py`` and ``serving.py`` (real computing, step by step),
``calibration.py`` (the profile), ``prediction.py`` (the simulator's word), ``replay.py`` (the closed loop) and
``open_loop.py``, ``asking.py`` (the quality of what was loaded), ``report.py``, and ``validation.py``, which puts them
together.
"""

from simkv.testbed.plan import Plan, load_plan
from simkv.testbed.validation import validate

__all__ = ["Plan", "load_plan", "validate"]
