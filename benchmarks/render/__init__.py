"""Pages and figures of reports: one module a benchmark, with `markdown(report)` and `figure(report)`."""
