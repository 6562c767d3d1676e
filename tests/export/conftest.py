"""An export takes torch seconds: each case is exported once and looked at by several tests."""

import pytest
from export_cases import Exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def get(name, exporter="dynamo"):
        key = name, exporter
        if key not in done:
            done[key] = Exported(name, exporter, folder)
        return done[key]

    return get
