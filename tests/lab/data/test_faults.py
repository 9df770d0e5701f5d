"""All faults of a table are in one message; one that is alone is said as it is."""

import pandas as pd
import pytest

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.load import load_table
from cyclofocal.lab.data.tables import checked, read_table
from cyclofocal.lab.messages import DamagedDataError

LINES = ["x,y,z,label", *(f"{i % 7},{i % 5},{i % 3},{'ab'[i % 2]}" for i in range(30))]


@pytest.fixture
def read(tmp_path):
    """Write lines as a CSV file and read the table; returns the message of its refusal."""

    def read(lines, target="label", encoding="utf-8", **fields):
        (tmp_path / "t.csv").write_bytes("\n".join(lines).encode(encoding))
        with pytest.raises(ValueError, match=r"t\.csv") as raised:
            load_table(TableData(str(tmp_path / "t.csv"), target=target, **fields))
        return raised

    return read


def test_every_fault_of_a_file_is_in_one_message(read):
    lines = LINES.copy()
    lines[3], lines[5], lines[7] = "1,2,3,a,5", "1,2,inf,", "1,2,3,rare"
    raised = read(lines, group_column="w", drop_columns=("v",), test_fraction=0.2, validation_fraction=0.2)
    assert raised.type is DamagedDataError
    title, *faults = str(raised.value).splitlines()
    assert title.endswith("t.csv: 6 faults")
    expected = [
        "1. --drop has 'v'; it must be one of the columns x, y, z, label.",
        "2. --group is 'w'; it must be one of the columns x, y, z, label.",
        "3. 1 of its lines has more values than there are names of columns (number 4); line 4 has 5 values for 4 names",
        "4. target 'label' has no value in 1 of its rows (number 4); remove them",
        "5. a test part and a validation part need 3 rows or more of every class, but 'rare' has 1; join rare classes,"
        " remove them, or take fewer folds",
        "6. column 'z' is infinite in 1 of its rows (number 4); leave missing values empty",
    ]
    assert [fault.strip() for fault in faults] == expected


def test_a_missing_target_hides_no_other_fault(read):
    lines = LINES.copy()
    lines[2] = "1,inf,3,a"
    said = str(read(lines, target="lable", time_column="tim").value)
    assert "target is 'lable'; it must be one of the columns x, y, z, label. Did you mean 'label'?" in said
    assert "--time is 'tim'" in said
    assert "column 'y' is infinite" in said


def test_a_single_fault_is_no_list(read):
    said = str(read(LINES, id_column="nothing").value)
    assert said.splitlines() == [said]
    assert "faults" not in said


def test_lines_in_another_encoding_are_named_with_other_faults(read):
    lines = LINES.copy()
    lines[4] = "1,2,é,a"
    said = str(read(lines, encoding="latin1", id_column="nothing").value)
    assert "1 of its lines (number 5); save it as UTF-8" in said
    assert "--id is 'nothing'" in said
    assert "UTF-8" in str(read(["x,label", "é,é", "é,é"], encoding="latin1").value)


def test_rows_behind_a_long_line_keep_their_columns(read):
    lines = LINES.copy()
    lines[3] = "1,2,3,a,5"
    lines[10] = "1,2,3,"
    assert "no value in 1 of its rows (number 9)" in str(read(lines).value)


def test_the_target_in_a_role_and_missing_groups_are_faults(read):
    lines = LINES.copy()
    lines[2] = ",1,1,a"
    said = str(read(lines, group_column="x", id_column="label").value)
    assert "--id names 'label', which is the target; omit it" in said
    assert "column 'x' has no value in 1 of its rows (number 2), but it is the group; fill in or remove them" in said


def test_a_column_that_is_left_out_has_no_faults(tmp_path):
    lines = [line + "," + ("1,5" if number % 2 else "$3") for number, line in enumerate(LINES[1:])]
    (tmp_path / "t.csv").write_text(
        "\n".join([LINES[0].replace(",", ";") + ";bad", *(x.replace(",", ";", 4) for x in lines)])
    )
    with pytest.raises(ValueError, match="'bad'"):
        read_table(tmp_path / "t.csv", "label")
    table = read_table(tmp_path / "t.csv", "label", TableData("t", drop_columns=("bad",)))
    assert list(table.features) == ["x", "y", "z"]


def test_faults_of_a_data_frame_are_together_too():
    frame = pd.DataFrame({"x": [float("inf")] * 4, "y": [float("nan")] * 4, "label": ["a"] * 4})
    with pytest.raises(ValueError, match="frame: 3 faults") as raised:
        checked(frame, "label", "frame")
    for words in ("has one class, a", "'x' is infinite", "'y' has no value at all"):
        assert words in str(raised.value)
