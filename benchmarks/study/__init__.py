"""Does tuning gain, and what makes it gain? Runs of several seeds, compared structure by structure.

    python -m benchmarks.study run TABLE           # goes on where it was; one thread a process
    python -m benchmarks.study run TABLE --jobs 2  # two runs at a time, where a run is one process
    python -m benchmarks.study show TABLE          # Markdown, CSV and PNG
    python -m benchmarks.study again TABLE         # one of its runs a second time, drawn by chance
    python -m benchmarks.study compare TABLE/ARM TABLE/ARM    # two rows, or two runs TABLE/ARM_seedN
    python -m benchmarks.study docs                # tables and pictures of docs/results.md and study.md

``tables.yaml`` says what is run. What a run ended with, for each structure, is kept in
``outcomes/TABLE/ARM_seedN.json``, and everything that is shown is made of that.
Second outcomes are in ``again/TABLE``.
"""
