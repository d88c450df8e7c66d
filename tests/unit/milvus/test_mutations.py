"""Writes in the form of the log: what is refused, what is mended, what the user is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus import batch, expressions, mutations
from haclient.milvus.mutations import InvalidWrite, Rows
from haclient.milvus.shape import MARK, Shape, read_shape
from tests.servers.write_cases import CASES, Case, D, column, columns, description, insert, meta, schema, schema_field

KEY = schema_field("id", D.Int64, is_primary_key=True)
TEXT_KEY = schema_field("id", D.VarChar, {"max_length": 20}, is_primary_key=True)
VECTOR = schema_field("v", D.FloatVector, {"dim": 2})
MARKED = [common_pb2.KeyValuePair(key=MARK, value="true")]


def shape_of(*fields: Any, properties: Sequence[Any] = (), **more: Any) -> Shape:
    return read_shape(description(schema("real", *fields, **more), properties=properties))


SHAPE = shape_of()
DYNAMIC = shape_of(enable_dynamic_field=True)


def no_keys(count: int) -> Sequence[int]:
    raise AssertionError(f"{count} keys made for nothing")


def log_form(
    given: list[Any],
    shape: Shape = SHAPE,
    count: int = 2,
    method: str = "Insert",
    new_keys: Callable[[int], Sequence[int]] = no_keys,
    **more: Any,
) -> tuple[Rows, dict[str, Any], Any]:
    made = mutations.rows(method, insert(method, given, count, **more), shape, "db", new_keys)
    body = milvus_pb2.UpsertRequest.FromString(made.message)
    return made, {one.field_name: one for one in body.fields_data}, body


@pytest.mark.parametrize("method", ["Insert", "Upsert"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table(case: Case, method: str) -> None:
    """What Milvus refuses is refused, in its words; what it takes is taken."""
    message = insert(method, case.given, case.count)
    if case.refused:
        with pytest.raises(InvalidWrite) as refused:
            mutations.rows(method, message, DYNAMIC if case.dynamic else SHAPE, "", no_keys)
        assert case.refused in refused.value.reason
        assert refused.value.code in (1100, 65535)
    else:
        mutations.rows(method, message, DYNAMIC if case.dynamic else SHAPE, "", no_keys)


class TestForm:
    def test_nothing_of_one_cluster(self) -> None:
        """Base, schema timestamp and hash keys go; names and database are in the body, the key comes first."""
        base = common_pb2.MsgBase(msgID=7, timestamp=9)
        made, _, body = log_form(columns()[::-1], base=base, schema_timestamp=5, hash_keys=[1, 2], db_name="other")
        assert (made.method, made.count, made.keys) == ("Upsert", 2, [1, 2])
        assert (body.db_name, body.collection_name, body.num_rows) == ("db", "real", 2)
        assert not body.HasField("base")
        assert (body.schema_timestamp, len(body.hash_keys)) == (0, 0)
        assert body.fields_data[0].field_name == "id"
        assert len(body.fields_data) == 12

    def test_mended(self) -> None:
        """Type, dimension and element type are the schema's; ids and flags that lead servers astray are gone."""
        given = columns(ai=column("ai", D.Array, [schema_pb2.ScalarField()] * 2))
        for one in given:
            one.type, one.field_id = 0, 99
        given[-1].vectors.dim = 0
        given[8].is_dynamic = True
        _, found, _ = log_form(given)
        assert [one.type for one in found.values()] == [one.data_type for one in SHAPE.fields.values()]
        assert {one.field_id for one in found.values()} == {0}
        assert found["v"].vectors.dim == 2
        assert not found["j"].is_dynamic
        rows = found["ai"].scalars.array_data
        assert rows.element_type == D.Int64
        assert [row.WhichOneof("data") for row in rows.data] == ["long_data"] * 2

    def test_dynamic_fields(self) -> None:
        """Their column has one name; null is an object without anything."""
        _, found, _ = log_form(columns(z=meta(b"null", b'{"x": 1}', name="")), DYNAMIC)
        assert list(found["$meta"].scalars.json_data.data) == [b"{}", b'{"x": 1}']
        assert found["$meta"].is_dynamic

    def test_the_last_of_two_rows_counts(self) -> None:
        """A key given twice is written once; the user is told of all he gave."""
        fields = (
            KEY,
            VECTOR,
            schema_field("n", D.Int64, nullable=True),
            schema_field("h", D.Float16Vector, {"dim": 1}),
        )
        shape = shape_of(*fields, enable_dynamic_field=True)
        given = [
            column("id", D.Int64, [1, 2, 1]),
            column("v", D.FloatVector, [1, 1, 2, 2, 3, 3], 2),
            column("n", D.Int64, [5, 6], valid=[True, False, True]),
            column("h", D.Float16Vector, b"aabbcc", 1),
            meta(b'{"a": 1}', b'{"b": 1}', b'{"c": 1}'),
        ]
        made, found, body = log_form(given, shape, 3)
        assert (made.keys, made.count, body.num_rows) == ([1, 2, 1], 3, 2)
        assert list(found["id"].scalars.long_data.data) == [2, 1]
        assert list(found["v"].vectors.float_vector.data) == [2, 2, 3, 3]
        assert (list(found["n"].scalars.long_data.data), list(found["n"].valid_data)) == ([6], [False, True])
        assert found["h"].vectors.float16_vector == b"bbcc"
        assert list(found["$meta"].scalars.json_data.data) == [b'{"b": 1}', b'{"c": 1}']

    def test_bare_json(self) -> None:
        """JSON values that old servers refuse are pointed out."""
        assert log_form(columns(j=column("j", D.JSON, [b"{}", b" [1]"])))[0].bare_json
        assert not log_form(columns(j=column("j", D.JSON, [b"{}", b' {"a": []}'])))[0].bare_json

    def test_other_words(self) -> None:
        """Parts of rows, namespaces and partitions beside a partition key are refused; no request."""
        op = schema_pb2.FieldPartialUpdateOp(field_name="t")
        for more in ({"partial_update": True}, {"field_ops": [op]}):
            with pytest.raises(InvalidWrite, match="send whole rows"):
                log_form(columns(), method="Upsert", **more)
        with pytest.raises(InvalidWrite, match="namespaces"):
            log_form(columns(), namespace="n")
        keyed = shape_of(KEY, VECTOR, schema_field("p", D.Int64, is_partition_key=True))
        with pytest.raises(InvalidWrite, match="not support manually specifying the partition names"):
            log_form([], keyed, partition_name="_default")
        with pytest.raises(InvalidWrite, match="not a InsertRequest"):
            mutations.rows("Insert", b"\xff", SHAPE, "", no_keys)
        assert log_form(columns(), partition_name="p")[2].partition_name == "p"


class TestNull:
    SHAPE = shape_of(
        KEY,
        VECTOR,
        schema_field("n", D.Int64, nullable=True),
        schema_field("x", D.BinaryVector, {"dim": 8}, nullable=True),
        schema_field("s", D.VarChar, {"max_length": 5}, default_value=schema_pb2.ValueField(string_data="z")),
    )

    def form(self, **more: Any) -> dict[str, Any]:
        good = {"id": column("id", D.Int64, [1, 2, 3]), "v": column("v", D.FloatVector, [1.0] * 6, 2)}
        return log_form([*good.values(), *more.values()], self.SHAPE, 3)[1]

    @pytest.mark.parametrize("values", [[7, 9], [7, 8, 9]], ids=["valid only", "all"])
    def test_values(self, values: list[int]) -> None:
        """Values of valid rows alone, whichever way they were given."""
        found = self.form(n=column("n", D.Int64, values, valid=[True, False, True]))["n"]
        assert (list(found.scalars.long_data.data), list(found.valid_data)) == ([7, 9], [True, False, True])

    def test_vectors(self) -> None:
        """The same for vectors."""
        found = self.form(x=column("x", D.BinaryVector, b"abc", 8, valid=[False, True, True]))["x"]
        assert found.vectors.binary_vector == b"bc"

    def test_all_null(self) -> None:
        """A column of nulls needs no values; its type is told all the same."""
        found = self.form(n=schema_pb2.FieldData(field_name="n", valid_data=[False] * 3))["n"]
        assert found.scalars.WhichOneof("data") == "long_data"

    def test_no_validity(self) -> None:
        """Without valid_data every row has a value; so columns can be merged."""
        found = self.form(n=column("n", D.Int64, [1, 2, 3]), s=column("s", D.VarChar, ["a", "b", "c"]))
        assert [list(found[name].valid_data) for name in "ns"] == [[True] * 3] * 2

    def test_left_out(self) -> None:
        """Fields with null or a default may be left out altogether."""
        assert set(self.form()) == {"id", "v"}

    @pytest.mark.parametrize("values", [[], [1], [1, 2, 3, 4]])
    def test_wrong_number(self, values: list[int]) -> None:
        with pytest.raises(InvalidWrite, match="of field \\(n\\) is not equal"):
            self.form(n=column("n", D.Int64, values, valid=[True, False, True]))

    def test_rows_that_are_not_there(self) -> None:
        """A number alone makes nothing of that size."""
        given = [column("id", D.Int64, [1]), column("v", D.FloatVector, [1.0, 2.0], 2), column("n", D.Int64, [1])]
        with pytest.raises(InvalidWrite, match="is more than a message of"):
            log_form(given, self.SHAPE, 2**32 - 1)

    def test_wrong_validity(self) -> None:
        with pytest.raises(InvalidWrite, match="the length of valid_data of field\\(n\\) is wrong"):
            self.form(n=column("n", D.Int64, [1, 2, 3], valid=[True, True]))


class TestVectors:
    @pytest.mark.parametrize(
        ("kind", "dim", "good", "bad"),
        [
            (D.BinaryVector, 16, b"aabb", b"aabbc"),
            (D.Float16Vector, 2, b"\0\0" * 4, b"\xff\xff" * 4),
            (D.BFloat16Vector, 2, b"\0\x3f" * 4, b"\x80\x7f" * 4),
            (D.Int8Vector, 3, b"\xffbcdef", b"abcde"),
        ],
    )
    def test_bytes(self, kind: int, dim: int, good: bytes, bad: bytes) -> None:
        """Rows of bytes are counted by the schema's dimension; halves that are no numbers are refused."""
        shape = shape_of(KEY, schema_field("x", kind, {"dim": dim}))
        ids = column("id", D.Int64, [1, 2])
        _, found, _ = log_form([ids, column("x", kind, good)], shape)
        assert found["x"].vectors.dim == dim
        with pytest.raises(InvalidWrite, match=r"not a number|should divide"):
            log_form([ids, column("x", kind, bad)], shape)

    @pytest.mark.parametrize(
        ("row", "refused"),
        [
            (b"\1\0\0\0\0\0\x80\x3f\2\0\0\0\0\0\x80\x3f", ""),
            (b"", ""),
            (b"\1\0\0\0\0\0\x80", "invalid data length"),
            (b"\2\0\0\0\0\0\x80\x3f\1\0\0\0\0\0\x80\x3f", "unsorted or same indices"),
            (b"\1\0\0\0\0\0\x80\x3f" * 2, "unsorted or same indices"),
            (b"\xff\xff\xff\xff\0\0\x80\x3f", "invalid index"),
            (b"\1\0\0\0\0\0\x80\xbf", "negative value"),
            (b"\1\0\0\0\0\0\x80\x7f", "value '\\+Inf'"),
        ],
    )
    def test_sparse(self, row: bytes, refused: str) -> None:
        """Sparse rows are pairs of rising indices and positive finite values."""
        shape = shape_of(KEY, schema_field("x", D.SparseFloatVector))
        rows = [column("id", D.Int64, [1]), column("x", D.SparseFloatVector, [row], 3)]
        if refused:
            with pytest.raises(InvalidWrite, match=refused):
                log_form(rows, shape, 1)
        else:
            log_form(rows, shape, 1)

    def test_computed(self) -> None:
        """A field that the server computes may be left out, and must be."""
        functions = [schema_pb2.FunctionSchema(name="f", type=1, output_field_names=["x"])]
        shape = shape_of(KEY, schema_field("x", D.SparseFloatVector), functions=functions)
        log_form([column("id", D.Int64, [1])], shape, 1)
        with pytest.raises(InvalidWrite, match="made by a function"):
            log_form([column("id", D.Int64, [1]), column("x", D.SparseFloatVector, [b""])], shape, 1)

    def test_structs(self) -> None:
        """An array of structs has all its parts, each with a value for every row."""
        parts = [
            schema_field("n", D.Array, {"max_capacity": 2}, element_type=D.Int64),
            schema_field("w", D.ArrayOfVector, {"dim": 2}, element_type=D.FloatVector),
        ]
        shape = shape_of(KEY, VECTOR, struct_array_fields=[schema_pb2.StructArrayFieldSchema(name="s", fields=parts)])
        row = schema_pb2.ScalarField(long_data=schema_pb2.LongArray(data=[1]))
        numbers = column("n", D.Array, [row] * 2)
        vectors = schema_pb2.FieldData(field_name="w")
        vectors.vectors.vector_array.data.extend([schema_pb2.VectorField(dim=2)] * 2)

        def given(*fields: Any) -> list[Any]:
            struct = schema_pb2.FieldData(field_name="s", type=D.ArrayOfStruct)
            struct.struct_arrays.fields.extend(fields)
            return [column("id", D.Int64, [1, 1]), column("v", D.FloatVector, [1.0] * 4, 2), struct]

        _, found, body = log_form(given(numbers, vectors), shape)
        kept = found["s"].struct_arrays.fields
        assert body.num_rows == 1
        assert (len(kept[0].scalars.array_data.data), len(kept[1].vectors.vector_array.data)) == (1, 1)
        for wrong in ((numbers,), (numbers, numbers), (column("n", D.Array, [row]), vectors)):
            with pytest.raises(InvalidWrite):
                log_form(given(*wrong), shape)


class TestKeys:
    VECTORS = column("v", D.FloatVector, [1.0] * 4, 2)

    @pytest.mark.parametrize(("key", "keys"), [(KEY, [10, 11]), (TEXT_KEY, ["10", "11"])])
    def test_made(self, key: Any, keys: list[int | str]) -> None:
        """An auto_id collection's keys are a column like any other; the log inserts."""
        shape = shape_of(key, VECTOR, properties=MARKED)
        made, found, body = log_form([self.VECTORS], shape, new_keys=lambda count: range(10, 10 + count))
        assert (made.method, made.keys) == ("Insert", keys)
        assert [*found["id"].scalars.long_data.data, *found["id"].scalars.string_data.data] == keys
        assert body.fields_data[0].field_name == "id"
        assert batch.keys_of(made.method, made.message, "id") == keys

    def test_not_to_be_given(self) -> None:
        """Keys that the user gives to an auto_id collection are refused, and so is an upsert."""
        shape = shape_of(KEY, VECTOR, properties=MARKED)
        with pytest.raises(InvalidWrite, match="expected=1\\]\\[actual=2"):
            log_form([column("id", D.Int64, [1, 2]), self.VECTORS], shape)
        with pytest.raises(InvalidWrite, match="upsert can not assign primary field data"):
            log_form([self.VECTORS], shape, method="Upsert")

    def test_made_by_the_server(self) -> None:
        """A collection whose keys each server makes cannot be mirrored."""
        native = shape_of(schema_field("id", D.Int64, is_primary_key=True, autoID=True), VECTOR)
        with pytest.raises(InvalidWrite, match="Create it anew through haclient"):
            log_form([self.VECTORS], native)


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


class TestDelete:
    INTS = shape_of(KEY, VECTOR)
    TEXTS = shape_of(TEXT_KEY, VECTOR)

    @staticmethod
    def delete(expression: str, shape: Shape, **more: Any) -> mutations.Deletion:
        request = milvus_pb2.DeleteRequest(collection_name="c", expr=expression, **more)
        return mutations.deletion(request.SerializeToString(), shape)

    @pytest.mark.parametrize(
        ("expression", "keys"),
        [
            ("id in [1, -2,+3 , 0]", [1, -2, 3, 0]),
            (" id  ==  5 ", [5]),
            ("id in []", []),
            ("id in [1, ]", [1]),
            ("id in [1,\n1]", [1, 1]),
            # 8 on a real Milvus, 10 on Lite.
            ("id in [010]", None),
            ("id in [0x10]", None),
            ("id > 3", None),
            ("n in [1]", None),
            ("id in [1] or id in [2]", None),
            ("not (id in [1])", None),
        ],
    )
    def test_numbers(self, expression: str, keys: list[int] | None) -> None:
        assert self.delete(expression, self.INTS).keys == keys

    @pytest.mark.parametrize(
        ("expression", "keys"),
        [
            ("""id in ["a", 'b']""", ["a", "b"]),
            (r"""id in ['it\'s', "a\"b", 'a"b', "it's"]""", ["it's", 'a"b', 'a"b', "it's"]),
            (r'id in ["a\\b", "a\\\\", "\n\r\t"]', ["a\\b", "a\\\\", "\n\r\t"]),
            (r'id == "\\u0041"', [r"\u0041"]),
            (r'id == "\u0041"', None),  # Lite knows no such escape
            (r'id in ["\x41"]', None),
            ('id in ["]", "{x}", ","]', ["]", "{x}", ","]),
        ],
    )
    def test_texts(self, expression: str, keys: list[str] | None) -> None:
        assert self.delete(expression, self.TEXTS).keys == keys

    def test_templates(self) -> None:
        """Keys given as a template's values are keys; anything else is passed on."""
        ids = schema_pb2.TemplateValue()
        ids.array_val.long_data.data.extend([3, 4])
        assert self.delete("id in {ids}", self.INTS, expr_template_values={"ids": ids}).keys == [3, 4]
        assert self.delete("id in {other}", self.INTS, expr_template_values={"ids": ids}).keys is None
        found = self.delete("n in {ids}", self.INTS, expr_template_values={"ids": ids}, partition_name="p")
        assert (found.keys, found.partition, list(found.values)) == (None, "p", ["ids"])
        page = milvus_pb2.QueryRequest.FromString(
            mutations.keys_query(self.INTS, found.expression, "p", "db", 9, found.values)
        )
        assert (page.expr, list(page.partition_names), page.db_name) == ("(n in {ids}) and id > 9", ["p"], "db")
        assert page.expr_template_values["ids"] == ids
        assert (page.consistency_level, page.use_default_consistency, list(page.output_fields)) == (0, False, ["id"])

    @pytest.mark.parametrize("expression", ["", "  ", 'id in ["a"]', "id == 9223372036854775808"])
    def test_refused(self, expression: str) -> None:
        """Nothing, or keys of another type, are refused."""
        with pytest.raises(InvalidWrite, match="delete plan"):
            self.delete(expression, self.INTS)

    def test_refused_partition(self) -> None:
        keyed = shape_of(KEY, VECTOR, schema_field("p", D.Int64, is_partition_key=True))
        with pytest.raises(InvalidWrite, match="partition key mode"):
            self.delete("id in [1]", keyed, partition_name="p")

    @given(st.lists(ANY_TEXT | st.sampled_from(["\\", '"', "\\u0041", "\n", "a\\", "\x00", "'"]), max_size=8))
    def test_texts_survive(self, keys: list[str]) -> None:
        """Whatever the keys are, the requests delete exactly these, once each."""
        found = [
            key
            for request in mutations.delete_keys(self.TEXTS, keys, "", "")
            for key in batch.keys_of("Delete", request, "id")
        ]
        assert found == list(dict.fromkeys(keys))

    def test_bounded(self) -> None:
        """Many or long keys go in several requests, in order."""
        requests = mutations.delete_keys(self.INTS, range(10_000), "p", "db")
        assert [key for one in requests for key in batch.keys_of("Delete", one, "id")] == list(range(10_000))
        assert len(requests) == 3
        long = mutations.delete_keys(self.TEXTS, [f"{at}{chr(34) * 60_000}" for at in range(6)], "", "")
        assert max(map(len, long)) < 300_000
        assert mutations.delete_keys(self.INTS, [], "", "") == []
        request = milvus_pb2.DeleteRequest.FromString(requests[0])
        assert (request.db_name, request.collection_name, request.partition_name) == ("db", "real", "p")

    def test_page(self) -> None:
        """A page's keys are read in the order of the servers: by number, or by bytes."""
        reply = milvus_pb2.QueryResults(fields_data=[column("n", D.Int64, [5]), column("id", D.Int64, [3, -1, 2])])
        assert mutations.keys_of_reply(reply.SerializeToString(), self.INTS) == [-1, 2, 3]
        reply = milvus_pb2.QueryResults(fields_data=[column("id", D.VarChar, ["\uffff", "😀", "a"])])
        assert mutations.keys_of_reply(reply.SerializeToString(), self.TEXTS) == ["a", "\uffff", "😀"]
        assert mutations.keys_of_reply(b"", self.INTS) == []
        assert expressions.literal('a"\n') in mutations.keys_query(self.TEXTS, "x > 1", "", "", 'a"\n').decode()


class TestAnswer:
    """The shapes of 2.3.5 (see tests/live/test_mutations_live.py)."""

    def test_rows(self) -> None:
        told = milvus_pb2.MutationResult.FromString(mutations.answer("Insert", [5, 6], 2, 77))
        assert list(told.IDs.int_id.data) == [5, 6]
        assert (told.insert_cnt, told.delete_cnt, told.upsert_cnt, told.timestamp) == (2, 0, 0, 77)
        assert list(told.succ_index) == [0, 1]
        told = milvus_pb2.MutationResult.FromString(mutations.answer("Upsert", ["a"], 1, 77))
        assert list(told.IDs.str_id.data) == ["a"]
        assert (told.insert_cnt, told.delete_cnt, told.upsert_cnt) == (1, 1, 1)

    def test_delete(self) -> None:
        answer = mutations.answer("Delete", ["a", "b"], 2, 0)
        assert answer == bytes.fromhex("0a0012003802")
