"""How fast jxent is, how much memory it takes and how exact it is, beside its peers: `python -m benchmarks`.

Cases (`cases`) × contenders (`contenders`) × measures (`measure`, `memory`, `truth`); README.md says how to run them.
"""
