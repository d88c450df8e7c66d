"""A user's write, turned into what goes into the mutation log: checked, complete, and the same for every cluster.

Decision made here: whatever every server would refuse is refused before the append, by the schema. What is left to
refuse for a server is then of that server alone. A request that names a key twice means the last of the two, as it
would if the rows came one after the other: real servers keep both rows or refuse, depending on their version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus import columns, expressions, timestamps
from haclient.milvus.columns import UNEXPECTED, invalid
from haclient.milvus.messages import Key
from haclient.milvus.shape import DYNAMIC, InvalidWrite, Shape, parse, parse_request

__all__ = [
    "Deletion",
    "InvalidWrite",
    "Rows",
    "answer",
    "delete_keys",
    "deletion",
    "keys_of_reply",
    "keys_query",
    "pick",
    "rows",
]

#: Bounds of one DeleteRequest, so that parsing its expression holds no server up.
_MOST_KEYS: Final = 4_096
_MOST_CHARACTERS: Final = 256 << 10
#: Keys of one page; real servers answer no more rows than this to one query.
_PAGE: Final = 16_384
_EXTREMES: Final = frozenset((-(2**63), 2**63 - 1))
_PARTITION_KEY: Final = "not support manually specifying the partition names if partition key mode is used"
_META: Final = schema_pb2.FieldSchema(name=DYNAMIC, data_type=schema_pb2.JSON, is_dynamic=True)


@final
@dataclass(frozen=True, slots=True)
class Rows:
    """An insert or upsert in the form of the log.

    Attributes:
        method: ``Insert`` if haclient made the keys, else ``Upsert``.
        message: The serialised InsertRequest or UpsertRequest; the key's column comes first.
        keys: The rows' keys as the user is told them, in their order.
        count: Number of rows that the user gave.
        bare_json: A value of a JSON field is no object; see `haclient.milvus.gates.bare_json`.
    """

    method: str
    message: bytes
    keys: Sequence[Key]
    count: int
    bare_json: bool = False


def rows(
    method_name: str, message: bytes, shape: Shape, database: str, new_keys: Callable[[int], Sequence[int]]
) -> Rows:
    """Turn an InsertRequest or UpsertRequest into what goes into the log.

    Args:
        method_name: ``Insert`` or ``Upsert``.
        message: The user's request.
        shape: The collection that it is for.
        database: The collection's database, "" for the default one.
        new_keys: Makes this many new keys, in ascending order; asked once, for an auto_id collection only.

    Raises:
        InvalidWrite: Milvus would refuse it.
    """
    request = _request(method_name, message, shape)
    count = request.num_rows
    given = _by_name(request.fields_data, shape)
    _complete(given, shape, method_name)
    for name, column in given.items():
        if name in shape.structs:
            _check_struct(column, shape.structs[name], count)
        else:
            columns.check(column, _META if name == DYNAMIC else shape.fields[name], count)
    if DYNAMIC in given:
        columns.check_dynamic(given[DYNAMIC], shape.fields.keys())
    key = _key_column(shape, new_keys(count)) if shape.auto_id else given.pop(shape.key)
    keys = _keys(key)
    _check_keys(keys)
    body = milvus_pb2.UpsertRequest(
        db_name=database,
        collection_name=shape.collection,
        partition_name=request.partition_name,
        fields_data=[key, *given.values()],
        num_rows=count,
    )
    _last_of_each(body, keys, shape)
    method = "Insert" if shape.auto_id else "Upsert"
    return Rows(method, bytes(body.SerializeToString()), keys, count, _has_bare_json(given.values()))


def _request(method_name: str, message: bytes, shape: Shape) -> Any:
    """Parse a request and check what it says beside the rows."""
    upsert = method_name == "Upsert"
    request = parse_request(milvus_pb2.UpsertRequest if upsert else milvus_pb2.InsertRequest, message)
    if shape.native_auto_id:
        text = f"the keys of {shape.collection} are made by the server itself, so clusters cannot hold the same rows"
        raise invalid(f"{text}. Create it anew through haclient, and copy the rows")
    if upsert and (request.partial_update or request.field_ops):
        raise invalid("an upsert of parts of rows (partial_update, field_ops) is not mirrored: send whole rows")
    if upsert and shape.auto_id:
        raise invalid(f"upsert can not assign primary field data when auto id enabled {shape.key}")
    if request.HasField("namespace"):
        raise invalid("namespaces are not mirrored: use a partition key")
    if request.num_rows == 0:
        raise invalid("num_rows should be greater than 0", expected="invalid num_rows", actual=0)
    if request.num_rows > len(message):
        # Every row takes a byte at least: nothing is made for rows that are only said to be there.
        raise invalid(f"num_rows ({request.num_rows}) is more than a message of {len(message)} bytes can hold")
    _check_partition(request.partition_name, shape)
    return request


def _check_partition(partition: str, shape: Shape) -> None:
    if partition and shape.partition_key:
        raise InvalidWrite(UNEXPECTED, _PARTITION_KEY)


def _by_name(given: Sequence[Any], shape: Shape) -> dict[str, Any]:
    """Return the columns by name; the one of dynamic fields is known by its flag."""
    found: dict[str, Any] = {}
    for column in given:
        known = column.field_name in shape.fields or column.field_name in shape.structs
        if not known and column.is_dynamic and shape.dynamic:
            column.field_name = DYNAMIC
        elif not known:
            raise invalid(f"fieldName {column.field_name} not exist in collection schema")
        if column.field_name in found:
            raise invalid(f"duplicated field {column.field_name} found")
        found[column.field_name] = column
    return found


def _complete(given: Mapping[str, Any], shape: Shape, method_name: str) -> None:
    """See that every field has its column, and that nothing is given that is not the user's to give."""
    if shape.auto_id and shape.key in given:
        expected = len(shape.fields) - 1
        raise invalid(f"more fieldData has pass in: {method_name}", expected=expected, actual=len(given))
    computed = shape.computed & given.keys()
    if computed:
        raise invalid(f"field {min(computed)} is made by a function of the collection and can not be given")
    for field in (*shape.fields.values(), *shape.structs.values()):
        optional = field.nullable or (field.name in shape.fields and field.HasField("default_value"))
        if field.name in given or optional or field.name in shape.computed:
            continue
        if not (shape.auto_id and field.name == shape.key):
            raise invalid(f"fieldSchema({field.name}) has no corresponding fieldData pass in")


def _check_struct(column: Any, schema: Any, count: int) -> None:
    parts = {part.field_name: part for part in column.struct_arrays.fields}
    wanted = {field.name: field for field in schema.fields}
    if parts.keys() != wanted.keys() or len(parts) != len(column.struct_arrays.fields):
        text = f"length of fields of struct field mismatch length of the fields in schema, fieldName: {schema.name}"
        raise invalid(text, expected=sorted(wanted), actual=sorted(parts))
    column.ClearField("field_id")
    for name, part in parts.items():
        columns.check(part, wanted[name], count)


def _key_column(shape: Shape, numbers: Sequence[int]) -> Any:
    """Make the column of new keys; a varchar key is the number as text."""
    column = schema_pb2.FieldData(type=shape.fields[shape.key].data_type, field_name=shape.key)
    if shape.key_type == "varchar":
        column.scalars.string_data.data.extend(map(str, numbers))
    else:
        column.scalars.long_data.data.extend(numbers)
    return column


def _keys(column: Any) -> list[Key]:
    return [*column.scalars.long_data.data, *column.scalars.string_data.data]


def _check_keys(keys: Sequence[Key]) -> None:
    """Refuse the two keys that 2.3.5 cannot give back: it lists no row of the highest and reads no lowest one."""
    for extreme in _EXTREMES.intersection(keys):
        raise invalid(f"the key {extreme} is not mirrored: servers cannot list or delete it. Take any other")


def _last_of_each(body: Any, keys: Sequence[Key], shape: Shape) -> None:
    """Leave only the last of the rows with the same key."""
    last = {key: at for at, key in enumerate(keys)}
    if len(last) == len(keys):
        return
    chosen = sorted(last.values())
    body.num_rows = len(chosen)
    pick(body.fields_data, chosen, shape)


def pick(given: Iterable[Any], chosen: Sequence[int], shape: Shape) -> None:
    """Leave only some rows of checked columns (``FieldData``), by their index in ascending order."""
    for column in given:
        for part, field in _flat(column, shape):
            valid = list(part.valid_data)
            if valid:
                place = _places(valid)
                columns.keep(part, [place[row] for row in chosen if valid[row]], field)
                del part.valid_data[:]
                part.valid_data.extend(valid[row] for row in chosen)
            else:
                columns.keep(part, chosen, field)


def _flat(column: Any, shape: Shape) -> Iterator[tuple[Any, Any]]:
    """Yield the columns of values in a column, each with its field; an array of structs has several."""
    struct = shape.structs.get(column.field_name)
    if struct is None:
        yield column, shape.fields.get(column.field_name, _META)
        return
    wanted = {field.name: field for field in struct.fields}
    for part in column.struct_arrays.fields:
        yield part, wanted[part.field_name]


def _places(valid: Sequence[bool]) -> list[int]:
    """Return for each row how many values come before its own."""
    places, found = [], 0
    for one in valid:
        places.append(found)
        found += one
    return places


def _has_bare_json(given: Any) -> bool:
    values = (one for column in given if column.type == schema_pb2.JSON for one in column.scalars.json_data.data)
    return any(not one.lstrip().startswith(b"{") for one in values)


@final
@dataclass(frozen=True, slots=True)
class Deletion:
    """What a DeleteRequest asks for.

    Attributes:
        keys: The keys, if the expression is nothing but a list of them; None if it has to be resolved.
        expression: The expression.
        partition: Name of the partition, "" for all.
        values: The expression's template values (``schema_pb2.TemplateValue``) by name.
    """

    keys: list[Key] | None
    expression: str
    partition: str
    values: Mapping[str, Any]


def deletion(message: bytes, shape: Shape) -> Deletion:
    """Read a DeleteRequest.

    Raises:
        InvalidWrite: Milvus would refuse it.
    """
    request = parse_request(milvus_pb2.DeleteRequest, message)
    if not request.expr.strip():
        raise invalid("delete plan can't be empty or always true : ")
    if request.HasField("namespace"):
        raise invalid("namespaces are not mirrored: use a partition key")
    _check_partition(request.partition_name, shape)
    values = dict(request.expr_template_values)
    keys = expressions.listed(request.expr, shape.key, values)
    for key in keys or ():
        if isinstance(key, str) != (shape.key_type == "varchar") or (
            isinstance(key, int) and not -(2**63) <= key < 2**63
        ):
            text = f"failed to create delete plan: cannot parse expression: {request.expr[:200]}"
            raise invalid(f"{text}, error: {key!r} is no {shape.key_type} key")
    return Deletion(keys, request.expr, request.partition_name, values)


def delete_keys(shape: Shape, keys: Sequence[Key], partition: str, database: str) -> list[bytes]:
    """Make DeleteRequests of bounded size that delete exactly these keys; none for no keys."""
    return [
        milvus_pb2.DeleteRequest(
            db_name=database,
            collection_name=shape.collection,
            partition_name=partition,
            expr=expressions.in_list(shape.key, some),
        ).SerializeToString()
        for some in _bounded(keys)
    ]


def _bounded(keys: Sequence[Key]) -> Iterator[list[Key]]:
    some: list[Key] = []
    size = 0
    for key in dict.fromkeys(keys):
        # Twice its length: each of its characters may have to be escaped.
        longest = 2 * len(key) + 4 if isinstance(key, str) else 22
        if some and (len(some) == _MOST_KEYS or size + longest > _MOST_CHARACTERS):
            yield some
            some, size = [], 0
        some.append(key)
        size += longest
    if some:
        yield some


def keys_query(
    shape: Shape,
    expression: str,
    partition: str,
    database: str,
    after: Key | None = None,
    values: Mapping[str, Any] | None = None,
) -> bytes:
    """Make one page of the Strong QueryRequest that resolves an expression to keys, in ascending order of the key.

    Args:
        shape: The collection.
        expression: Of the DeleteRequest.
        partition: Of the DeleteRequest.
        database: "" for the default one.
        after: Highest key of the page before, None for the first page.
        values: Template values of the expression.
    """
    expr = expression if after is None else f"({expression}) and {shape.key} > {expressions.literal(after)}"
    request = milvus_pb2.QueryRequest(
        db_name=database,
        collection_name=shape.collection,
        expr=expr,
        output_fields=[shape.key],
        partition_names=[partition] if partition else [],
        consistency_level=timestamps.STRONG,
        expr_template_values=values or {},
    )
    # As pymilvus' own iterator asks: by these, servers answer in the order of the key, and a page that is not full is
    # still right.
    for name, value in (("limit", str(_PAGE)), ("iterator", "True"), ("reduce_stop_for_best", "True")):
        request.query_params.append(common_pb2.KeyValuePair(key=name, value=value))
    return bytes(request.SerializeToString())


def keys_of_reply(reply: bytes, shape: Shape) -> list[Key]:
    """Read the keys of a page's QueryResults, ascending; the pages end with the first that has none.

    Raises:
        ValueError: The bytes are something else.
    """
    for column in parse(milvus_pb2.QueryResults, reply).fields_data:
        if column.field_name == shape.key:
            return sorted(_keys(column), key=_order)
    return []


def _order(key: Key) -> int | bytes:
    """Order as servers do: strings by their bytes."""
    return key if isinstance(key, int) else key.encode()


def answer(method_name: str, keys: Sequence[Key], count: int, timestamp: int) -> bytes:
    """Make the MutationResult that the user gets, in the shape of a real Milvus'.

    Measured on 2.3.5: an Upsert counts what it inserts and deletes as well; a Delete tells no keys, and counts those
    that were asked for, whether they are there or not.

    Args:
        method_name: ``Insert``, ``Upsert`` or ``Delete``: what the user called.
        keys: The keys written; of a delete none are told.
        count: Number of rows; of a delete, of keys.
        timestamp: The session token.
    """
    result = milvus_pb2.MutationResult(status=common_pb2.Status(), IDs=schema_pb2.IDs(), timestamp=timestamp)
    if method_name == "Delete":
        result.delete_cnt = count
        return bytes(result.SerializeToString())
    if keys and isinstance(keys[0], str):
        result.IDs.str_id.data.extend(keys)
    else:
        result.IDs.int_id.data.extend(keys)
    result.succ_index.extend(range(count))
    result.insert_cnt = count
    if method_name == "Upsert":
        result.delete_cnt = result.upsert_cnt = count
    return bytes(result.SerializeToString())
