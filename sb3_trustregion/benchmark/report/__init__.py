"""Reports on what came of a grid: scores, statistics, figures, and a page of them."""
