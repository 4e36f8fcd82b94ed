"""How long updates take, beside the stock algorithms: ``make bench-speed``."""
