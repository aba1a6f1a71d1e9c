"""The `modelpack` command: verbs, and what happens when one fails."""

import os
import sys
import traceback

import typer

import modelpack
from modelpack.cli import exits, node_top_verbs, transfer_verbs
from modelpack.cli.catalog_verbs import list_command, login, logout, remove_command
from modelpack.cli.entry import stopped
from modelpack.cli.look_verbs import diff_command, inspect_command, verify_command
from modelpack.cli.output import print_json, report, show_error
from modelpack.disk.heap import keep_freed_memory
from modelpack.spec.errors import ModelpackError

app = typer.Typer(
    name="modelpack",
    help="Model weights as reproducible OCI artifacts: pack, push, pull.\n\n"
    "REF is [host[:port]/]repository[:tag][@digest], or oci:DIRECTORY[:tag] for an OCI layout.",
    epilog="Exit codes: " + "; ".join(f"{code} {what}" for code, what in exits.MEANINGS.items()),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("push")(transfer_verbs.push_command)
app.command("pull")(transfer_verbs.pull_command)
app.command("copy")(transfer_verbs.copy_command)
app.command("inspect")(inspect_command)
app.command("diff")(diff_command)
app.command("verify")(verify_command)
app.command("ls")(list_command)
app.command("rm")(remove_command)
app.command("login")(login)
app.command("logout")(logout)
app.add_typer(node_top_verbs.app, name="node")


@app.command("version")
def version(
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),  # noqa: FBT001
) -> None:
    """Print the version of modelpack and of the artifact format it writes."""
    from modelpack.pack.build import FORMAT_VERSION

    if as_json:
        print_json({"version": modelpack.__version__, "format": FORMAT_VERSION})
    else:
        typer.echo(f"modelpack {modelpack.__version__}, artifact format {FORMAT_VERSION}")


def run(arguments: list[str]) -> int:  # one return per way to end
    """Run one command; returns its exit code. Never shows a traceback for what is not a bug."""
    as_json = "--json" in arguments
    keep_freed_memory()
    try:
        code = int(app(arguments, standalone_mode=False) or exits.OK)
        # typer turns Ctrl-C into this code and says nothing.
        return stopped(code, arguments) if code == exits.INTERRUPTED else code
    except ModelpackError as error:
        show_error(error, as_json=as_json)
        return exits.exit_code(error)
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return stopped(exits.INTERRUPTED, arguments)
    except BrokenPipeError:
        # The reader of our output left; nothing more can be said to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    except Exception as error:  # noqa: BLE001  # the last line of defence
        # What typer raises for wrong usage has this method; its classes are private.
        usage = getattr(error, "format_message", None)
        return _misused(str(usage()), as_json=as_json) if usage else _bug(error, as_json=as_json)


def _misused(message: str, *, as_json: bool) -> int:
    if "Usage:" in message:  # called without arguments: the message is the help
        sys.stderr.write(f"{message}\n")
    else:
        report("Usage", message, "see --help", exits.USAGE, as_json=as_json)
    return exits.USAGE


def _bug(error: Exception, *, as_json: bool) -> int:
    report(
        "Bug", f"a bug: {type(error).__name__}: {error}",
        "please report it, with what MODELPACK_DEBUG=1 prints", exits.BUG, as_json=as_json,
    )  # fmt: skip
    if os.environ.get("MODELPACK_DEBUG"):
        traceback.print_exception(error)
    return exits.BUG
