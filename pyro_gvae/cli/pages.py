"""The commands that write a page of a run folder; each imports only what its page needs."""

import webbrowser

from ..config.commands import ExploreConfig, GapsConfig, ReportConfig
from ..config.units import in_bytes
from ..runs.config import is_train_run
from .said import Said


def gaps_command(config: GapsConfig) -> Said:
    """Measure the gaps of a run and return the table and the figure's path."""
    from ..report.gaps import gaps_table, run_gaps

    table = run_gaps(
        config.run,
        num_data=config.num_data,
        num_particles=config.num_particles,
        max_memory=in_bytes(config.max_memory),
        data_dir=config.data_dir,
    )
    page = config.run / "gaps.html"
    return Said(f"{gaps_table(table)}\n\nreport: {page}", {"report": page, "rows": table.to_dict("records")})


def report_command(config: ReportConfig) -> Said:
    """Write the report of a run folder of train or compare, and the explorer that it links to."""
    from ..report.comparison import write_report
    from ..report.explorer import explorer_if_possible
    from ..report.training import write_train_report

    explorer_if_possible(config.run, data_dir=config.data_dir)
    is_one = is_train_run(config.run)
    page = write_train_report(config.run, data_dir=config.data_dir) if is_one else write_report(config.run)
    if config.open:
        webbrowser.open(page.absolute().as_uri())
    return Said(f"report: {page}", {"report": page})


def explore_command(config: ExploreConfig) -> Said:
    """Write the explorer of a run folder, and open it if asked."""
    from ..report.explorer import write_explorer

    page = write_explorer(config.run, data_dir=config.data_dir, output=config.output)
    if config.open:
        webbrowser.open(page.absolute().as_uri())
    return Said(f"explorer: {page}", {"explorer": page})
