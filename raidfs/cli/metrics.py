"""`raidfs-ctl metrics`: figures of mounted volumes as Prometheus and node_exporter read them.

1. A file is written whole beside its place and renamed: whoever reads it finds the last one or
   this one.
2. A volume whose daemon doesn't answer is told as raidfs_up 0, and the exit code is 1.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.output import EXIT_ERROR, sentence
from raidfs.daemon import registry
from raidfs.daemon.metrics import MetricsRequest, Sample, exposition, unreachable
from raidfs.errors import RaidfsError, UsageError

FILE_MODE = 0o644  # node_exporter runs as another user
SUFFIX = ".prom"


def _samples(volume: target.Mounted) -> list[Sample]:
    with volume.client() as client:
        return msgspec.json.decode(client.ask(MetricsRequest()), type=list[Sample])


def write_whole(path: Path, content: bytes) -> None:
    """Promise 1. OSError."""
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), FILE_MODE)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _check_file(path: Path) -> None:
    """UsageError for what can't be meant."""
    if path.suffix != SUFFIX:
        raise UsageError(f"{path}: node_exporter reads only files whose names end in {SUFFIX}")
    if path.exists() and not stat.S_ISREG(path.lstat().st_mode):
        raise UsageError(f"{path} is there and no ordinary file; name another")


@click.command("metrics")
@click.argument("where", metavar="[MOUNTPOINT...]", nargs=-1)
@click.option(
    "--textfile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write them there, for node_exporter's textfile collector.",
)
def metrics_command(where: tuple[str, ...], textfile: Path | None) -> int:
    """Tell the figures of mounted volumes, all or those named, in the text form of Prometheus.

    Names and meanings are in docs/METRICS.md. To have Prometheus get them from the daemon itself,
    mount with -o metrics=HOST:PORT or -o metrics=unix:/path.

    Exit code: 0 all have answered; 1 some have not.

    \b
    Examples:
      raidfs-ctl metrics /mnt/tank
      raidfs-ctl metrics --textfile /var/lib/node_exporter/textfile_collector/raidfs.prom
    """
    if textfile is not None:
        _check_file(textfile)
    if where:
        volumes = [target.must_be_mounted(one, "metrics") for one in where]
    else:
        volumes = [target.Mounted(*found) for found in registry.entries()]
    code = 0
    samples = []
    for volume in volumes:
        try:
            samples.append(_samples(volume))
        except RaidfsError as error:
            if volume.entry.closing:
                continue  # it was unmounted a moment ago
            click.echo(f"raidfs-ctl: {volume.entry.mountpoint}: {sentence(error)}", err=True)
            samples.append(unreachable(volume.entry.volume_name))
            code = EXIT_ERROR
    text, _ = exposition(samples)
    if textfile is None:
        click.echo(text.decode(), nl=False)
    else:
        write_whole(textfile, text)
    return code
