"""Load on a served model: paired comparisons of servers and schedules."""
