"""The profiler: measure compressors, models and devices, and write profiles.  The only part of simkv that needs torch.

It never imports the simulator, nor the simulator it; they meet in ``simkv.profiles``.
"""
