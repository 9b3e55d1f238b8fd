"""A record to change parts of, for the tests of what is made of records."""

from fairchem_gdeq.evaluation.records import Record

RECORD = Record(
    sid="a",
    row=0,
    delta_q=1.0,
    max_displacement=0.2,
    mean_distance=0.1,
    mae=0.05,
    converged=True,
    diverged=False,
    evaluations=10,
    residual=0.01,
    free_atoms=5,
    shift_removed=0.0,
    leaderboard_distance=0.1,
    leaderboard_mae=0.05,
    leaderboard_mse=0.01,
)
