"""Writes the sample collections of this folder, the same bytes each time: `python examples/data/generate.py`.

One document a line in canonical Extended JSON, one file a collection, named `<database>.<collection>.jsonl`.
People, places and works come from the word lists below and are invented. `shop` and `library` look like
ordinary applications with the irregularities that such databases collect over the years;
`library.curiosities` holds one document for each BSON type and odd value.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bson import Binary, Decimal128, Int64, ObjectId, json_util
from curiosities import ODD_KEYS, ODD_NAMES, ODD_VALUES, date

Document = dict[str, Any]

SEED = 20260101
START = int(datetime(2025, 1, 6, tzinfo=UTC).timestamp())  # what the shop sold since then
YEAR = 365 * 86400

FIRST = [
    "Ilsa",
    "Tobin",
    "Mirel",
    "Castor",
    "Nadia",
    "Oren",
    "Petra",
    "Jory",
    "Selma",
    "Anselm",
    "Runa",
    "Odile",
]
LAST = ["Alder", "Birken", "Corn", "Drift", "Elm", "Fallow", "Grint", "Hazel", "Iron", "Juniper", "Marl"]
ENDING = ["wick", "feld", "more", "stead", "lund", "combe", "ström", "ová"]
CITY = ["Nordhaven", "Kestrel Bay", "Lower Tamsin", "Ostermark", "Vale of Ruun", "Pëlmura", "Saltmere"]
STREET = ["Quarry Lane", "Ferry Street", "Old Mill Road", "Larkspur Row", "Harbour Steps"]
GOODS = ["lantern", "kettle", "rope", "notebook", "compass", "blanket", "whistle", "stool", "basket", "clock"]
LOOK = ["amber", "folding", "brass", "woollen", "painted", "travelling", "quiet", "double", "small", "oak"]
TAGS = ["gift", "outdoor", "kitchen", "sale", "handmade", "winter", "été", "新着"]
STATUS = ["placed", "packed", "sent", "delivered", "returned"]
TITLE = ["The {} {}", "A {} {} at Dusk", "{} {}", "On the {} {}", "Letters to a {} {}"]
GENRE = ["novel", "travel", "essays", "poems", "nature", "history"]


class Maker:
    """Everything drawn from one seeded source of chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - sample data, no secrets
        self.count = 0

    def pick(self, words: list[str]) -> str:
        return self.chance.choice(words)

    def often(self, share: float) -> bool:
        return self.chance.random() < share

    def object_id(self, seconds: int) -> ObjectId:
        self.count += 1
        return ObjectId(seconds.to_bytes(4, "big") + bytes.fromhex("5eedda7a00") + self.count.to_bytes(3, "big"))

    def uuid(self) -> Binary:
        raw = bytearray(self.chance.randbytes(16))
        raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
        return Binary(bytes(raw), 4)

    def name(self) -> str:
        return f"{self.pick(FIRST)} {self.pick(LAST)}{self.pick(ENDING)}"

    def moment(self, start: int = START, span: int = YEAR) -> int:
        return start + self.chance.randrange(span)

    def price(self) -> Decimal128:
        return Decimal128(f"{self.chance.randrange(199, 24999) / 100:.2f}")


def customers(make: Maker) -> Iterator[Document]:
    """ObjectId keys, births before 1970, fields that arrive late, a phone that is a number or a string."""
    for number in range(270):
        joined, name = START - YEAR + number * 86400, make.name()
        document: Document = {
            "_id": make.object_id(joined),
            "number": number,
            "name": name,
            "email": f"{re.sub('[^a-z]', '', name.lower())}{number}@example.com",
            "born": date(make.moment(-20 * YEAR, 45 * YEAR)),
            "address": {
                "street": f"{make.pick(STREET)} {make.chance.randrange(1, 120)}",
                "city": make.pick(CITY),
            },
            "tags": make.chance.sample(TAGS, make.chance.randrange(3)),
            "balance": make.price(),
            "newsletter": make.often(0.4),
        }
        if number >= 150:
            document["phone"] = 5550000 + number if make.often(0.5) else f"555-{number:04d}"
        if number >= 240:
            document["points"] = make.chance.randrange(5000)
        if make.often(0.05):
            document["Email"] = f"second{number}@example.org"
        yield document


def products(make: Maker) -> Iterator[Document]:
    """String keys, weights that are integers or doubles, a discount that is a number or a document."""
    for number in range(160):
        look, goods = make.pick(LOOK), make.pick(GOODS)
        document: Document = {
            "_id": f"{goods[:3].upper()}-{number:04d}",
            "name": f"{look} {goods}",
            "price": make.price(),
            "weight": make.chance.randrange(1, 9) if make.often(0.5) else make.chance.randrange(1, 90) / 8,
            "stock": make.chance.randrange(500),
            "size": {"w": make.chance.randrange(90), "h": make.chance.randrange(90), "unit": "cm"},
            "picture": make.chance.randbytes(12) if make.often(0.5) else None,
        }
        if make.often(0.2):
            percent = make.chance.randrange(5, 40)
            document["discount"] = percent if number < 100 else {"percent": percent, "until": date(START + YEAR)}
        if make.often(0.1):
            document['label "shelf" name'] = f"{look[:1]}.{number}"
        yield document


def orders(make: Maker) -> Iterator[Document]:
    """Integer keys, embedded lines, exact totals, references."""
    for number in range(560):
        placed = START + number * (YEAR // 560) + make.chance.randrange(3600)
        lines = [
            {
                "sku": f"{make.pick(GOODS)[:3].upper()}-{make.chance.randrange(160):04d}",
                "n": make.chance.randrange(1, 6),
            }
            for _ in range(1 + make.often(0.3))
        ]
        document: Document = {
            "_id": 100000 + number,
            "customer": make.chance.randrange(270),
            "placed": date(placed),
            "status": make.pick(STATUS),
            "lines": lines,
            "total": make.price(),
        }
        if make.often(0.1):
            document["note"] = "leave at the door\nthank you" if number < 400 else {"text": "ring twice", "lang": "en"}
        if number >= 460:
            document["channel"] = make.pick(["web", "phone", "counter"])
        yield document


def sessions(make: Maker) -> Iterator[Document]:
    """UUID keys, and integers beyond 2^53 beside doubles in one field."""
    for _ in range(180):
        big = Int64(2**53 + make.chance.randrange(2**40) * 2 + 1)
        yield {
            "_id": make.uuid(),
            "started": date(make.moment() + make.chance.randrange(1000) / 1000),
            "bytes": big if make.often(0.5) else make.chance.randrange(10**6) / 4,
            "agent": make.pick(["till 1", "till 2", "app", "kiosk"]),
        }


def events(make: Maker) -> Iterator[Document]:
    """Three kinds of keys in one collection, as after a merger of systems, and a free payload."""
    keys: list[Callable[[int], Any]] = [
        lambda n: make.object_id(START + n * 3600),
        lambda n: n,
        lambda n: f"till-{n % 7}/{n}",
    ]
    for number in range(240):
        payload: list[Any] = [number, f"#{number}", {"n": number}, [number, None, "x"], number / 2, None]
        yield {
            "_id": keys[number % 3](number),
            "kind": make.pick(["opened", "scanned", "closed", "refunded"]),
            "at": date(START + number * 3600),
            "payload": payload[make.chance.randrange(6)],
        }


def authors(make: Maker) -> Iterator[Document]:
    """Small documents, lives that ended or not."""
    for number in range(90):
        born = make.chance.randrange(-150 * YEAR, 20 * YEAR)
        document: Document = {"_id": make.object_id(START + number), "number": number, "name": make.name()}
        document["born"] = date(born)
        document["died"] = date(born + make.chance.randrange(30, 90) * YEAR) if make.often(0.5) else None
        yield document


def books(make: Maker) -> Iterator[Document]:
    """String keys, nested editions, ratings that are NaN where nobody voted."""
    for number in range(260):
        title = make.pick(TITLE).format(make.pick(LOOK).title(), make.pick(GOODS).title())
        document: Document = {
            "_id": f"shelf/{number // 40}/{number:04d}",
            "title": title,
            "author": make.chance.randrange(90),
            "genre": make.pick(GENRE),
            "year": make.chance.randrange(1890, 2026),
            "rating": make.chance.randrange(10, 51) / 10 if make.often(0.9) else float("nan"),
        }
        if make.often(0.2):
            document["Title"] = title.upper()
        if make.often(0.15):
            document["editions"] = [{"year": document["year"], "pages": 180}, {"year": 2025, "audio": True}]
        if number >= 200:
            document["acquired"] = date(make.moment())
        yield document


def loans(make: Maker) -> Iterator[Document]:
    """Integer keys, references, open and closed loans."""
    for number in range(320):
        lent = START + number * 60000
        document: Document = {
            "_id": number + 1,
            "book": f"shelf/{number % 260 // 40}/{number % 260:04d}",
            "reader": make.name(),
            "lent": date(lent),
        }
        if make.often(0.8):
            document["back"] = date(lent + make.chance.randrange(1, 40) * 86400)
            document["fine"] = make.chance.choice([0, 0, 0, 1.5, Decimal128("0.75")])
        yield document


def visits(_: Maker) -> Iterator[Document]:
    """Date keys: one document for each day that the doors were open."""
    for day in range(90):
        yield {"_id": date(START + day * 86400), "visitors": 40 + day * 37 % 61, "warmth": 18.5 + day % 5 / 2}


def curiosities(make: Maker) -> Iterator[Document]:
    """Keys that look alike, every BSON type and every awkward value, one a document."""
    for number, (what, value) in enumerate(ODD_VALUES):
        yield {"_id": f"value {number:02d}", "what": what, "value": value, "same": {"inside": [value]}}
    for what, key in ODD_KEYS:
        yield {"_id": key, "what": what}
    for name in ODD_NAMES:
        yield {"_id": f"field {name}", "what": "an odd name", name: make.chance.randrange(100)}
    yield {"_id": {"twins": 1}, "what": "upper and lower case", "Shelf": 1, "shelf": 2, "SHELF": "three"}


COLLECTIONS: dict[str, Callable[[Maker], Iterator[Document]]] = {
    "shop.customers": customers,
    "shop.products": products,
    "shop.orders": orders,
    "shop.sessions": sessions,
    "shop.events": events,
    "library.authors": authors,
    "library.books": books,
    "library.loans": loans,
    "library.visits": visits,
    "library.curiosities": curiosities,
}

CANONICAL = json_util.JSONOptions(json_mode=json_util.JSONMode.CANONICAL)


def line(document: Document) -> str:
    """One document as canonical Extended JSON, without needless spaces."""
    return json_util.dumps(document, json_options=CANONICAL, separators=(",", ":"), ensure_ascii=False)


def main() -> None:
    """Write every collection into the folder named on the command line, by default this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, documents) in enumerate(COLLECTIONS.items()):
        lines = [line(document) for document in documents(Maker(SEED + index))]
        json.loads(f"[{','.join(lines)}]")  # what is written must be JSON
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
