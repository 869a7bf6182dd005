import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.barriers.DistributedDoubleBarrier;
import org.apache.curator.framework.recipes.cache.CuratorCache;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreV2;
import org.apache.curator.framework.recipes.locks.Lease;
import org.apache.curator.framework.recipes.queue.SimpleDistributedQueue;
import org.apache.curator.retry.RetryForever;

/**
 * Curator's recipes on an ensemble whose members are killed meanwhile: a lock and a semaphore that exclude, one
 * leader at a time, a barrier that all pass together, a queue that loses nothing, a cache that ends up right.
 *
 * Sessions live long and operations are retried, so a recipe must keep its promise throughout.
 *
 *   java -cp ... Recipes HOST:PORT,HOST:PORT,... SECONDS
 */
public final class Recipes {
    private static final int CLIENTS = 4;
    private static final int SESSION_MS = 20_000;
    private static final int PATIENCE_S = 60;

    private final List<CuratorFramework> clients = new ArrayList<>();
    private final long end;
    private final Map<String, AtomicLong> counts = new TreeMap<>();

    private Recipes(String servers, int seconds) throws Exception {
        for (int at = 0; at < CLIENTS; at++) {
            CuratorFramework client = CuratorFrameworkFactory.newClient(
                    servers, SESSION_MS, 15_000, new RetryForever(50));
            client.start();
            check(client.blockUntilConnected(PATIENCE_S, TimeUnit.SECONDS), "client " + at + " is not connected");
            clients.add(client);
        }
        for (String recipe : List.of("lock", "semaphore", "leader", "barrier", "queue", "cache")) {
            counts.put(recipe, new AtomicLong());
        }
        end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
    }

    public static void main(String[] arguments) throws Exception {
        Recipes recipes = new Recipes(arguments[0], Integer.parseInt(arguments[1]));
        recipes.run();
        System.out.println("recipes kept their promises: " + recipes.counts);
        System.exit(0);
    }

    private void run() throws Exception {
        List<Callable<Void>> work = new ArrayList<>();
        AtomicInteger inLock = new AtomicInteger();
        AtomicInteger inSemaphore = new AtomicInteger();
        AtomicInteger leading = new AtomicInteger();
        for (int at = 0; at < CLIENTS; at++) {
            int number = at;
            CuratorFramework client = clients.get(at);
            work.add(() -> lock(client, inLock));
            work.add(() -> semaphore(client, inSemaphore));
            work.add(() -> leader(client, number, leading));
            work.add(() -> barrier(client));
        }
        work.add(this::queue);
        work.add(this::cache);
        ExecutorService threads = Executors.newCachedThreadPool();
        List<Future<Void>> running = new ArrayList<>();
        work.forEach(one -> running.add(threads.submit(one)));
        for (Future<Void> one : running) {
            one.get();
        }
        for (Map.Entry<String, AtomicLong> count : counts.entrySet()) {
            check(count.getValue().get() > 0, count.getKey() + " has done nothing");
        }
    }

    private boolean isOver() {
        return System.nanoTime() > end;
    }

    private void count(String recipe) {
        counts.get(recipe).incrementAndGet();
    }

    private Void lock(CuratorFramework client, AtomicInteger inside) throws Exception {
        InterProcessMutex mutex = new InterProcessMutex(client, "/recipes/lock");
        while (!isOver()) {
            check(mutex.acquire(PATIENCE_S, TimeUnit.SECONDS), "the lock is not to be had");
            check(inside.incrementAndGet() == 1, "two hold the lock");
            Thread.sleep(2);
            inside.decrementAndGet();
            mutex.release();
            count("lock");
        }
        return null;
    }

    private Void semaphore(CuratorFramework client, AtomicInteger inside) throws Exception {
        InterProcessSemaphoreV2 semaphore = new InterProcessSemaphoreV2(client, "/recipes/semaphore", 2);
        while (!isOver()) {
            Lease lease = semaphore.acquire(PATIENCE_S, TimeUnit.SECONDS);
            check(lease != null, "there is no lease to be had");
            check(inside.incrementAndGet() <= 2, "three hold a semaphore of two");
            Thread.sleep(2);
            inside.decrementAndGet();
            lease.close();
            count("semaphore");
        }
        return null;
    }

    /** A latch gives leadership up when its connection is lost, so a leader that still thinks so is asked again. */
    private Void leader(CuratorFramework client, int number, AtomicInteger leading) throws Exception {
        while (!isOver()) {
            LeaderLatch latch = new LeaderLatch(client, "/recipes/leader", Integer.toString(number));
            latch.start();
            if (latch.await(5, TimeUnit.SECONDS)) {
                int leaders = leading.incrementAndGet();
                Thread.sleep(5);
                check(leaders == 1 || !latch.hasLeadership(), "two lead at a time");
                leading.decrementAndGet();
                count("leader");
            }
            latch.close();
        }
        return null;
    }

    private Void barrier(CuratorFramework client) throws Exception {
        // All do the same number of rounds, whatever the time: nobody is left behind in one.
        for (int round = 0; round < 20; round++) {
            DistributedDoubleBarrier barrier = new DistributedDoubleBarrier(client, "/recipes/barrier/" + round, CLIENTS);
            check(barrier.enter(PATIENCE_S, TimeUnit.SECONDS), "not all have come to barrier " + round);
            check(barrier.leave(PATIENCE_S, TimeUnit.SECONDS), "not all have left barrier " + round);
            count("barrier");
        }
        return null;
    }

    /** What is offered once is taken at least once: an operation that is retried may have happened before. */
    private Void queue() throws Exception {
        SimpleDistributedQueue in = new SimpleDistributedQueue(clients.get(0), "/recipes/queue");
        SimpleDistributedQueue out = new SimpleDistributedQueue(clients.get(1), "/recipes/queue");
        Set<Integer> missing = ConcurrentHashMap.newKeySet();
        for (int number = 0; !isOver(); number++) {
            missing.add(number);
            in.offer(Integer.toString(number).getBytes(StandardCharsets.UTF_8));
            byte[] taken = out.poll(PATIENCE_S, TimeUnit.SECONDS);
            if (taken == null) {
                // Its delete was retried: it had happened, and the answer was lost with the member.
                continue;
            }
            missing.remove(Integer.parseInt(new String(taken, StandardCharsets.UTF_8)));
            count("queue");
        }
        for (byte[] rest = out.poll(); rest != null; rest = out.poll()) {
            missing.remove(Integer.parseInt(new String(rest, StandardCharsets.UTF_8)));
        }
        // A poll whose answer was lost has taken its element along; at most one for each loss.
        check(missing.size() <= 20, "the queue has lost " + missing);
        return null;
    }

    private Void cache() throws Exception {
        CuratorFramework writer = clients.get(2);
        writer.create().orSetData().creatingParentsIfNeeded().forPath("/recipes/cache/value", new byte[0]);
        CuratorCache cache = CuratorCache.build(clients.get(3), "/recipes/cache");
        cache.start();
        for (int number = 0; !isOver(); number++) {
            byte[] value = Integer.toString(number).getBytes(StandardCharsets.UTF_8);
            writer.setData().forPath("/recipes/cache/value", value);
            long patience = System.nanoTime() + TimeUnit.SECONDS.toNanos(PATIENCE_S);
            while (!cache.get("/recipes/cache/value").map(it -> java.util.Arrays.equals(it.getData(), value)).orElse(false)) {
                check(System.nanoTime() < patience, "the cache does not show " + number);
                Thread.sleep(1);
            }
            count("cache");
        }
        cache.close();
        return null;
    }

    private static void check(boolean holds, String otherwise) {
        if (!holds) {
            throw new IllegalStateException(otherwise);
        }
    }
}
