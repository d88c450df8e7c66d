// Runs one program with the Node SDK, and prints what each step answered as one JSON object.
//
//     node client.js URI NAME        NAME is the collection's; the answers have "NAME" in its place
'use strict';

const { MilvusClient, DataType } = require('@zilliz/milvus2-sdk-node');

const [, , address, name] = process.argv;
const query = [4.2, 1, 0, -4.2];
const rows = (first, count) =>
  Array.from({ length: count }, (_, n) => first + n).map((id) => ({
    id,
    kind: id % 2 ? 'odd' : 'even',
    facts: { n: id, deep: [1, { x: null }] },
    vector: [id, 1, 0, -id],
    extra: id * 2,
  }));
const fields = [
  { name: 'id', data_type: DataType.Int64, is_primary_key: true },
  { name: 'kind', data_type: DataType.VarChar, max_length: 20 },
  { name: 'facts', data_type: DataType.JSON },
  { name: 'vector', data_type: DataType.FloatVector, dim: 4 },
];
const strong = { collection_name: name, consistency_level: 'Strong' };

const steps = {
  version: (c) => c.getVersion(),
  'has not': (c) => c.hasCollection({ collection_name: name }),
  create: (c) => c.createCollection({ collection_name: name, fields, enable_dynamic_field: true }),
  describe: (c) => c.describeCollection({ collection_name: name }),
  insert: (c) => c.insert({ collection_name: name, data: rows(0, 30) }),
  upsert: (c) => c.upsert({ collection_name: name, data: rows(25, 10) }),
  flush: (c) => c.flushSync({ collection_names: [name] }),
  index: (c) => c.createIndex({ collection_name: name, field_name: 'vector', index_type: 'FLAT', metric_type: 'L2' }),
  'describe index': (c) => c.describeIndex({ collection_name: name, field_name: 'vector' }),
  load: (c) => c.loadCollectionSync({ collection_name: name }),
  'load state': (c) => c.getLoadState({ collection_name: name }),
  search: (c) => c.search({ ...strong, data: [query], limit: 3, output_fields: ['kind', 'facts', 'extra'] }),
  'search many': (c) => c.search({ ...strong, data: [query, [9.1, 1, 0, -9.1]], limit: 2 }),
  query: (c) => c.query({ ...strong, filter: 'id in [1, 2]', output_fields: ['kind', 'facts', 'extra'] }),
  get: (c) => c.get({ ...strong, ids: [7], output_fields: ['kind'] }),
  count: (c) => c.count({ ...strong }),
  delete: (c) => c.delete({ collection_name: name, filter: 'id in [4, 5]' }),
  'search after delete': (c) => c.search({ ...strong, data: [query], limit: 1 }),
  partition: (c) => c.createPartition({ collection_name: name, partition_name: 'p' }),
  partitions: (c) => c.showPartitions({ collection_name: name }),
  alias: (c) => c.createAlias({ collection_name: name, alias: `${name}_too` }),
  'search alias': (c) => c.search({ ...strong, collection_name: `${name}_too`, data: [query], limit: 1 }),
  'drop alias': (c) => c.dropAlias({ alias: `${name}_too` }),
  'unknown collection': (c) => c.search({ collection_name: 'nothing', data: [query], limit: 1 }),
  'unknown collection described': (c) => c.describeCollection({ collection_name: 'nothing' }),
  'wrong dimension': (c) => c.search({ ...strong, data: [[1, 2]], limit: 1 }),
  'bad filter': (c) => c.query({ ...strong, filter: 'id >>> 1' }),
  'unknown field': (c) => c.query({ ...strong, filter: 'nothing > 1', output_fields: ['id'] }),
  'missing field': (c) => c.insert({ collection_name: name, data: [{ id: 1 }] }),
  'unknown role': (c) => c.describeRole({ roleName: 'nothing' }),
  'unknown method': (c) => c.describeDatabase({ db_name: 'default' }),
  release: (c) => c.releaseCollection({ collection_name: name }),
  drop: (c) => c.dropCollection({ collection_name: name }),
  gone: (c) => c.hasCollection({ collection_name: name }),
};

const failure = (error) => ({ error: error.constructor.name, code: error.code, text: error.details || error.message });

async function main() {
  const client = new MilvusClient({ address, timeout: 30000, logLevel: 'none' });
  await client.connectPromise;
  const answers = {};
  for (const [step, run] of Object.entries(steps)) {
    answers[step] = await run(client).catch(failure);
  }
  await client.closeConnection();
  console.log(JSON.stringify(answers).replaceAll(name, 'NAME'));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
