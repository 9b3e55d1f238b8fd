"""How well structures relax: the task, its metrics, the table and the files of a split."""
