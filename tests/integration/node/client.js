// A client in another language: the public protos, read as they are, and the public address.
//     node client.js ADDRESS PROTOS  ->  one line of JSON: the execution, and what it printed
'use strict';

const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, protos] = process.argv.slice(2);
const definition = loader.loadSync(
  ['job', 'schedule', 'execution', 'cluster'].map((name) => `tickmesh/v1/${name}.proto`),
  { includeDirs: [protos], enums: String, longs: Number, bytes: String },
);
const { tickmesh } = grpc.loadPackageDefinition(definition);
const credentials = grpc.credentials.createInsecure();
const jobs = new tickmesh.v1.JobService(address, credentials);
const schedules = new tickmesh.v1.ScheduleService(address, credentials);
const executions = new tickmesh.v1.ExecutionService(address, credentials);

const options = () => ({ deadline: Date.now() + 30_000 });

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, options(), (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

function stream(client, method, request, each) {
  return new Promise((resolve, reject) => {
    client[method](request, options()).on('data', each).on('error', reject).on('end', resolve);
  });
}

async function main() {
  const job = await call(jobs, 'CreateJob', {
    parent: 'customers/node',
    job: { container: { image: 'stamp:1' } },
  });
  const preview = await call(schedules, 'PreviewSchedule', {
    parent: 'customers/node',
    recurrence: { crons: ['30 2 29 3 *'], timeZone: 'Europe/Berlin' },
    afterTime: { seconds: 1766000000 },
    count: 1,
  });
  const made = await call(executions, 'ExecuteJob', { name: job.name });
  let last = made;
  await stream(executions, 'WatchExecutions', { parent: made.name }, (message) => {
    for (const execution of message.executions) last = execution;
  });
  let output = '';
  await stream(executions, 'StreamLogs', { name: made.name }, (part) => {
    output += Buffer.from(part.data, 'base64').toString();
  });
  const refusal = await call(jobs, 'GetJob', { name: 'customers/node/jobs/nobody' }).catch(
    (error) => grpc.status[error.code],
  );
  const { name, state, exitCode } = last;
  console.log(JSON.stringify({ name, state, exitCode, output, preview: preview.fires, refusal }));
  for (const client of [jobs, schedules, executions]) client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
