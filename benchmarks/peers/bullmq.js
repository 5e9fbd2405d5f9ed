// BullMQ: one delayed job per reservation.
//   node bullmq.js add SOCKET           adds [id, product, ExpiresAt in Unix ms] from standard input
//   node bullmq.js work SOCKET N        a worker with concurrency N, until it is killed
'use strict';

const { readFileSync } = require('node:fs');
const { Queue, Worker } = require('bullmq');
const IORedis = require('ioredis');

const Redis = IORedis.default ?? IORedis.Redis ?? IORedis;
const [verb, socket, concurrency] = process.argv.slice(2);
const connect = () => new Redis({ path: socket, maxRetriesPerRequest: null });
const BULK = 1000;

async function add() {
  const connection = connect();
  const queue = new Queue('release', { connection });
  const rows = JSON.parse(readFileSync(0, 'utf8'));
  for (let n = 0; n < rows.length; n += BULK) {
    await queue.addBulk(
      rows.slice(n, n + BULK).map(([id, product, expiresAt]) => ({
        name: 'release',
        data: { id, product, quantity: 1 },
        opts: { delay: Math.max(1, expiresAt - Date.now()), removeOnComplete: true, removeOnFail: true },
      })),
    );
  }
  await queue.close();
  connection.disconnect();
}

function work() {
  const stock = connect();
  const release = ({ data: { id, product, quantity } }) =>
    stock
      .multi()
      .hset(`{inventory}:reservation:${id}`, 'status', 'Expired')
      .hincrby(`{inventory}:stock:${product}`, 'available', quantity)
      .hincrby(`{inventory}:stock:${product}`, 'reserved', -quantity)
      .exec();
  const worker = new Worker('release', release, { connection: connect(), concurrency: Number(concurrency) });
  worker.on('error', (error) => console.error(error));
}

if (verb === 'add') add();
else work();
