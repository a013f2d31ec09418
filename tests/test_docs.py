"""The documentation says what the code does: links, commands, names of tests, metrics, exit codes, metadata."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cartridge_warp import errors
from cartridge_warp.cli.main import cli
from cartridge_warp.config import load_config
from cartridge_warp.connectors.postgresql.migrate import migrate
from cartridge_warp.connectors.postgresql.reference import page, tables
from cartridge_warp.kernel import PoisonDocument
from cartridge_warp.observe import events
from cartridge_warp.observe.prometheus import Metrics

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
WORKER = ROOT / "worker" / "cartridge_warp"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return [text for name, text in FENCE.findall(path.read_text()) if name == kind]


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """What the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def rows(path: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = path.read_text().split(f" {heading}\n", 1)[1]
    found = re.search(r"^(?:\|.*\n)+", text, re.MULTILINE)
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()[2:]]


def ticked(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


# -- links and files ---------------------------------------------------------------------------------------


@each_page
def test_links_lead_somewhere(path):
    """Each link to another page, file or heading leads to one that exists."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target
        assert path.parent.name != "docs" or found.parent == path.parent, f"{target} is not on the site"


def test_every_page_is_in_the_navigation():
    """The site shows each page of docs/ once."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = [name for entry in site["nav"] for name in entry.values()]
    assert sorted(listed) == sorted(path.name for path in ROOT.glob("docs/*.md"))


@each_page
def test_named_tests_exist(path):
    """Each test that a page names is there."""
    there = {name for file in ROOT.glob("tests/test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    there |= {file.stem for file in ROOT.glob("tests/test_*.py")}
    assert set(re.findall(r"`(test_\w+)`", path.read_text())) <= there


# -- commands ----------------------------------------------------------------------------------------------


def commands(path: Path) -> Iterator[list[str]]:
    """The command lines of a page, in blocks and in the text, by what follows `cartridge-warp` or `make`."""
    text = path.read_text()
    lines = [line for block in blocks(path, "sh") + blocks(path, "") for line in block.splitlines()]
    for line in [*lines, *ticked(prose(path))]:
        if re.match(r"(venv/bin/|\.venv/bin/)?cartridge-warp [-\w]|make [-\w]", line.strip()):
            yield shlex.split(line, comments=True)
    assert text


def known_options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}


@each_page
def test_commands_exist(path):
    """Each command line of a page names a sub-command, options and a target of make that exist."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    context = click.Context(cli)
    for program, *words in commands(path):
        if program == "make":
            assert {word for word in words if "=" not in word} <= targets, words
            continue
        name = "run" if words[0].startswith("-") else words[0]
        if name == "demo" and words == ["demo"]:  # the title of the demo's own output
            continue
        command = cli.get_command(context, name)
        assert command is not None, words
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known_options(command), words


def test_configurations_load():
    """The configurations of the README load as they stand there, but for where the servers are."""
    found = [yaml.safe_load(block) for block in blocks(ROOT / "README.md", "yaml")]
    found += [yaml.safe_load(block) for block in blocks(ROOT / "docs" / "configuration.md", "yaml")]
    assert len(found) >= 3
    for tree in found:
        servers = {
            "source": {"connection_string": "mongodb://localhost"},
            "destination": {"connection_string": "postgresql://localhost/x"},
        }
        assert load_config(environ={}, overrides=servers | tree).units()


# -- what the README says of settings ----------------------------------------------------------------------


def test_settings_without_effect_have_none():
    """No code reads the settings that the README names as having no effect yet; whoever gives one its effect
    corrects the README."""
    told = (ROOT / "README.md").read_text().split("- Accepted without effect so far: ", 1)[1].partition("\n- ")[0]
    assert set(ticked(told)) == {"schema_evolution.strategy", "schema_evolution.max_rewrite_rows"}
    files = [f for f in WORKER.rglob("*.py") if f.parent.name not in ("config", "resources", WORKER.name)]
    for name in ("evolution_strategy", "max_rewrite_rows"):
        assert [f.name for f in files if re.search(rf"\.{name}\b", f.read_text())] == [], f"{name} is read now"


# -- errors ------------------------------------------------------------------------------------------------


def classes() -> list[type[errors.WarpError]]:
    found = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.WarpError)]
    return [*found, PoisonDocument]


def test_exit_codes_are_those_of_the_errors():
    """The table of exit codes names each error's code, in the line of its exit code."""
    told = {int(row[0]): ticked(row[1]) for row in rows(ROOT / "docs" / "operations.md", "Exit codes")}
    for each in classes():
        if each is not PoisonDocument:  # always isolated, never the end of a process
            assert each.code in told[each.exit_code]
    assert {code for codes in told.values() for code in codes} <= {each.code for each in classes()}


def test_every_error_has_its_line():
    """Operations says of each error what the worker does about it."""
    found = rows(ROOT / "docs" / "operations.md", "What the worker does about errors")
    told = {name for row in found for name in ticked(row[0])}
    assert told == {each.code for each in classes()} - {"error", "poison"}


# -- metrics -----------------------------------------------------------------------------------------------


def every_metric() -> dict[str, tuple[str, set[str]]]:
    """Name, type and labels of every metric, after one event of each kind."""
    where = ("shop", "shop")
    metrics = Metrics()
    heard = [
        events.State(*where, state="streaming"),
        events.Committed(*where, operations={"orders": {"insert": 1}}, bytes=1, refused=1),
        events.SnapshotStarted(*where, "orders"),
        events.ChunkCommitted(*where, "orders", rows=1, rows_done=1),
        events.SchemaChanged(*where, "orders", change_type="add_table"),
        events.Misfit(*where, "orders"),
        events.DeadLettered(*where, "orders", error_class="poison"),
        events.Failed(*where, error_type="unavailable", retry_in=1.0),
        events.Lag(*where, token_age_seconds=1.0, oplog_headroom_seconds=1.0),
        events.Queue(*where),
        events.Pool(*where),
    ]
    for event in heard:
        metrics(event)
    families = text_string_to_metric_families(metrics.render()[0].decode())
    found = {}
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        found[name] = (family.type, labels)
    return {name: value for name, value in found.items() if name.startswith("cartridge_warp_")}


def test_metrics_are_those_of_the_code():
    """The page of metrics names each metric with its type and labels, and no other."""
    path, told = ROOT / "docs" / "metrics.md", {}
    for heading, kind in (("Counters", "counter"), ("Gauges", "gauge"), ("Histograms", "histogram")):
        for name, further, *_ in rows(path, heading):
            labels = {"database", "schema", *([] if "memory" in name else ["table"])}
            label = re.match(r"`(\w+)`", further)
            told[name.strip("`")] = (kind, labels | ({label[1]} if label else set()))
    assert told == every_metric()


@each_page
def test_metric_names_exist(path):
    """Each metric that any page names is one of the code."""
    text = re.sub(r"cartridge_warp_metadata\b", "", path.read_text())
    assert set(re.findall(r"\bcartridge_warp_\w+", text)) - set(every_metric()) <= {"cartridge_warp_"}


# -- metadata ----------------------------------------------------------------------------------------------


def test_the_metadata_page_is_current():
    """docs/metadata.md is what the migrations say; `make docs` writes it."""
    written = (ROOT / "docs" / "metadata.md").read_text()
    assert written == page(), "run: python -m cartridge_warp.connectors.postgresql.reference > docs/metadata.md"


_CATALOG = """
SELECT c.relname, a.attname, format_type(a.atttypid, NULL), NOT a.attnotnull,
    coalesce(col_description(c.oid, a.attnum), ''), coalesce(obj_description(c.oid), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'metadata'::regnamespace AND c.relkind = 'r'
"""


async def test_the_metadata_page_is_the_real_schema(postgres):
    """Tables, columns, types and comments of the page are those that PostgreSQL has after all migrations; nothing
    is without a comment."""
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await migrate(connection, "metadata")
        found = await (await connection.execute(_CATALOG)).fetchall()
    short = {"timestamp with time zone": "timestamptz"}
    real = {(row[0], row[1]): (short.get(row[2], row[2]), *row[3:]) for row in found}
    told = {
        (table.name, column.name): (column.type, column.nullable, column.comment, table.comment)
        for table in tables()
        for column in table.columns.values()
    }
    assert all(value[2] and value[3] for value in told.values())
    itself = rows(ROOT / "docs" / "metadata.md", "migrations")
    told |= {("migrations", row[0].strip("`")): (row[1].strip("`"), row[2] == "", "", "") for row in itself}
    assert told == real
