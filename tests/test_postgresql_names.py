"""Names that mean something to the driver or to SQL."""

from __future__ import annotations

import pytest

from warp_testing.replica import Replica, config_for


@pytest.mark.parametrize("odd", ["100%", "%s", "%(a)s", 'quo"te', "semi;colon", "{brace}", "back\\slash", "ünï cödé"])
async def test_odd_names_everywhere(mongo, postgres, odd):
    """A collection, a field, a target schema and a metadata schema may have any name."""
    config = config_for(
        mongo.uri,
        postgres,
        mongo.name,
        destination={"schema": f"to {odd}", "metadata_schema": f"meta {odd}"},
    )
    replica = Replica(config)
    mongo.db[f"c {odd}"].insert_many([{"_id": i, odd: i, f"other {odd}": "x"} for i in range(3)])
    async with replica.running():
        await replica.settled()
        mongo.db[f"c {odd}"].update_one({"_id": 1}, {"$set": {odd: "changed"}})
        mongo.db[f"c {odd}"].delete_one({"_id": 2})
        mongo.db[f"c {odd}"].insert_one({"_id": 9, odd: None, f"late {odd}": 1.5})
        await replica.settled()
    mongo.db[f"c {odd}"].drop()
    await replica.once()
    assert await replica.differences() == []
