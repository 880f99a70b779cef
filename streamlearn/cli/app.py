"""The commands as typer knows them; what they do is elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamlearn import __version__
from streamlearn.cli import catalogue, streams
from streamlearn.cli.commands import explain, run
from streamlearn.cli.scaffolding import new_plugin

__all__ = ["app", "command"]

_SETTINGS: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": None}

app = typer.Typer(**_SETTINGS, context_settings={"help_option_names": ["-h", "--help"]})
plugins_app = typer.Typer(help="The installed plugins.", **_SETTINGS)
streams_app = typer.Typer(help="The installed stream builders.", **_SETTINGS)

app.command()(run)
app.command()(explain)
app.add_typer(plugins_app, name="plugins")
plugins_app.command("new")(new_plugin)
app.command("hooks", help="List the hooks that a plugin can implement, and which installed plugins do.")(catalogue.list_hooks)
app.add_typer(streams_app, name="streams")
streams_app.command("list", help="List the installed stream builders and their options.")(streams.list_streams)


@plugins_app.command("list")
def list_plugins(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the installed plugins, without importing any of them."""
    catalogue.list_plugins(as_json)


@plugins_app.command("info")
def show_plugin(name: Annotated[str, typer.Argument(help="A name that 'streamlearn plugins list' shows.")]) -> None:
    """Show the options of a plugin, its hooks, its cost and its reference."""
    catalogue.show_plugin(name)


@plugins_app.command("check")
def check_plugin(
    text: Annotated[str, typer.Argument(metavar="NAME[:key=value,...]", help="A plugin, and its options.")],
    beside: Annotated[list[str] | None, typer.Option("--beside", metavar="NAME[:...]", help="A plugin that it needs; repeatable.")] = None,
    expected: Annotated[
        list[str] | None, typer.Option("--expect-failure", metavar="CHECK=REASON", help="A check that must fail, and why; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a plugin: that it acts, resumes, stays within its bounds and stands beside others; exit code 1 if it does not."""
    from streamlearn.cli.checking import check_plugin

    check_plugin(text, beside or (), expected or (), as_json)


@plugins_app.command("doctor")
def examine_plugins(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Load every installed plugin, one by one, and tell what is wrong with each and what to do; exit code 1 if anything is."""
    from streamlearn.cli.doctor import doctor

    if not doctor(as_json):
        raise typer.Exit(1)


@streams_app.command("show")
def show_stream(
    text: Annotated[str, typer.Argument(metavar="'NAME:key=value,... | NAME:...'", help="A builder, its options, and operators after it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Draw it: a .svg, .png or .pdf file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what it holds as JSON.")] = False,
    no_samples: Annotated[bool, typer.Option("--no-samples", help="Leave sample inputs out of the picture.")] = False,
) -> None:
    """Show a stream: what arrives when, as a table, a picture or JSON. A NAME alone: the documentation of its builder."""
    streams.show_stream(text, output, as_json=as_json, samples=not no_samples)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamlearn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the program an error arose; may stand anywhere.")] = False,
) -> None:
    """One engine for a stream of tasks; every method is a plugin. Start with: streamlearn run"""


def command() -> Any:
    """The whole program, ready to be invoked."""
    return typer.main.get_command(app)
