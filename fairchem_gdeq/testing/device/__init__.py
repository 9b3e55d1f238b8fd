"""Of ``testing``: a GPU that is not there, which refuses what CUDA would refuse."""
