"""The end of every test of state: the offline checker looks at the members and finds nothing."""

from raidfs.check import check_volume


def run_check(paths):
    """`raidfs-ctl check` on the members of a volume that nobody has open."""
    report = check_volume(paths[0])
    assert not report.findings, report.findings[:20]
    assert not report.notes, report.notes[:20]
    return report
