"""The sample data: what it holds, how it is made, and that it arrives in the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bson
import pytest
from bson.datetime_ms import DatetimeMS
from pymongo import AsyncMongoClient

from cartridge_warp.cli.demo_data import CODEC, DataFile, document, find_data, load_data
from cartridge_warp.cli.demo_traffic import Traffic
from cartridge_warp.errors import ConfigError, WarpError

ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples" / "data"


def documents():
    return [document(line) for path in sorted(DATA.glob("*.jsonl")) for line in path.open(encoding="utf-8")]


WIDTHS = {1: 8, 6: 0, 7: 12, 8: 1, 9: 8, 10: 0, 16: 4, 17: 8, 18: 8, 19: 16, 127: 0, 255: 0}
LENGTH_BEFORE = {2: 4, 3: 0, 4: 0, 5: 5, 13: 4, 15: 0}


def element_types(raw: bytes) -> set[int]:
    """The BSON type bytes of all elements, at any depth."""
    found = set()
    position = 4
    while raw[position]:
        kind = raw[position]
        found.add(kind)
        position = raw.index(0, position + 1) + 1
        if kind == 11:
            position = raw.index(0, raw.index(0, position) + 1) + 1
        elif kind in WIDTHS:
            position += WIDTHS[kind]
        else:
            length = LENGTH_BEFORE[kind] + int.from_bytes(raw[position : position + 4], "little")
            if kind in (3, 4):
                found |= element_types(raw[position : position + length])
            position += length
    return found


def test_the_generator_writes_the_same_bytes_each_time(tmp_path):
    """The committed sample data is exactly what the seeded script makes."""
    subprocess.run([sys.executable, DATA / "generate.py", tmp_path], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in DATA.glob("*.jsonl")}


def test_the_data_is_small_and_has_two_databases():
    """All sample data together stays below 500 KB and fills the databases that the example manifest names."""
    files = find_data(DATA)
    assert sum(file.path.stat().st_size for file in files) < 500_000
    assert {file.database for file in files} == {"shop", "library"}
    assert len(documents()) > 2000


def test_every_bson_type_appears():
    """Every BSON type stands in the sample data; the deprecated ones as the strings of their file."""
    types = {kind for each in documents() for kind in element_types(bson.encode(each, codec_options=CODEC))}
    assert types >= {1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 15, 16, 17, 18, 19, 255, 127}
    text = "".join(path.read_text(encoding="utf-8") for path in DATA.glob("*.jsonl"))
    assert all(name in text for name in ("$symbol", "$undefined", "$dbPointer", "$ref"))


def test_odd_names_and_keys_appear():
    """Names that are hard to quote, twins in case, 80-byte names, several types of keys in a collection."""
    names = {name for each in documents() for name in each}
    assert {
        'with "quotes"',
        "with.dot",
        "$dollar",
        "shelf",
        "SHELF",
        "n" * 80,
        "xmin",
        "_warp_version",
    } <= names
    keys = {type(document(line)["_id"]) for line in (DATA / "shop.events.jsonl").open(encoding="utf-8")}
    assert len(keys) == 3


async def test_the_data_arrives_unchanged(mongo):
    """Each document that the server can hold reads back as it stands in its file."""
    files = [DataFile(mongo.name, each.collection, each.path) for each in find_data(DATA)]
    async with AsyncMongoClient(mongo.uri) as client:
        loaded = await load_data(client, files)
        for file in files:
            found = client[mongo.name].get_collection(file.collection, codec_options=CODEC).find({})
            arrived = {bson.encode(each, codec_options=CODEC) async for each in found}
            written = {bson.encode(document(line), codec_options=CODEC) for line in file.path.open(encoding="utf-8")}
            assert arrived <= written
            assert len(written - arrived) == sum(file.collection in name for name in loaded.left_out)
    assert loaded.documents + len(loaded.left_out) == len(documents())


async def test_only_what_the_server_cannot_hold_is_left_out(mongo, tmp_path):
    """A date that the server refuses is named, and takes no other document with it."""
    path = tmp_path / f"{mongo.name}.things.jsonl"
    far = '{"_id": "far", "at": {"$date": {"$numberLong": "9223372036854775807"}}}'
    path.write_text(f'{{"_id": 1}}\n\n{far}\n{{"_id": 2}}\n')
    async with AsyncMongoClient(mongo.uri) as client:
        loaded = await load_data(client, find_data(tmp_path))
        assert loaded.left_out == (f'{mongo.name}.things "far"',)
        assert [each["_id"] async for each in client[mongo.name]["things"].find({})] == [1, 2]


async def test_a_refused_document_is_an_error(mongo, tmp_path):
    """Two documents of one key say so, with the file's name."""
    (tmp_path / f"{mongo.name}.things.jsonl").write_text('{"_id": 1}\n{"_id": 1}\n')
    async with AsyncMongoClient(mongo.uri) as client:
        with pytest.raises(WarpError, match=r"refused .*things\.jsonl.*E11000"):
            await load_data(client, find_data(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.b.jsonl", "{", "line 1 is not an Extended JSON"),
        ("a.b.jsonl", "[1]", "an object is expected"),
        ("a.b.jsonl", '{"_id": {"$oid": "short"}}', "line 1 is not an Extended JSON"),
        ("nodot.jsonl", "{}", "names no collection"),
        ("other.txt", "{}", "holds no sample data"),
    ],
)
async def test_bad_sample_data_is_named(mongo, tmp_path, name, text, message):
    """A file that cannot be read says which line, and what is wrong."""
    (tmp_path / name).write_text(text)
    async with AsyncMongoClient(mongo.uri) as client:
        with pytest.raises(ConfigError, match=message):
            await load_data(client, find_data(tmp_path))


async def test_traffic_makes_every_kind_of_change(mongo):
    """Inserts, updates and deletes happen, keys keep their types, a field appears that nobody had."""
    files = [DataFile(mongo.name, each.collection, each.path) for each in find_data(DATA)]
    async with AsyncMongoClient(mongo.uri) as client:
        await load_data(client, files)
        traffic = Traffic(client, [(mongo.name, file.collection) for file in files])
        await traffic.learn()
        await traffic.change(300)
        number = await traffic.pulse()
        database, collection = traffic.pulse_table
        assert await client[database][collection].count_documents({"demo_pulse": number}) == 1
        assert await client[mongo.name]["orders"].count_documents({"reviewed_at": {"$exists": True}}) > 0
        assert {type(each["_id"]) async for each in client[mongo.name]["orders"].find({}, {"_id": 1})} == {int}
    assert min(traffic.counts[kind] for kind in ("inserts", "updates", "deletes")) > 10
    assert traffic.total > 290


def test_extreme_dates_stay_numbers():
    """A date beyond Python's years survives the way from the file to the driver."""
    assert document('{"_id": {"$date": {"$numberLong": "400000000000000"}}}')["_id"] == DatetimeMS(400000000000000)
