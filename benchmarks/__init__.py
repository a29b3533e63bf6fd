"""How fast jxent is, how much memory it takes and how exact it is, beside its peers: `python -m benchmarks`.

Cases (`cases`) × contenders (`losses`, `contenders`) × measures (`measure`, `truth`); README.md says how to run them.
"""
