//! Late binding. Without patience to end, a call is bound by an offer or not at all.

use super::*;

const FOR_EVER: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_goes_to_the_first_worker_that_is_free() {
    let lb = Lb::late(FOR_EVER).await;
    let gates = lb.gated("slow").await;
    let workers = [lb.worker("a").await, lb.worker("b").await];
    let call = |body: &str| tokio::spawn(lb.call("slow", body));
    // One call fills each worker; the next one waits for both.
    let first = call("first");
    gates.came("first").await;
    let second = call("second");
    gates.came("second").await;
    let third = call("third");
    eventually("both workers keep a place", || {
        workers.iter().all(|real| real.worker.counts().reserved == 1)
    })
    .await;
    assert_eq!(lb.stats().await["held"], 1);
    gates.open("second");
    gates.came("third").await;
    gates.open("third");
    let answers = [second.await.unwrap(), third.await.unwrap()];
    let places = answers.each_ref().map(|answer| answer.header("x-openlambda-worker").to_owned());
    assert_eq!(places[0], places[1], "where a slot became free");
    assert_eq!(answers[1].header("x-openlambda-start"), "warm");
    gates.open("first");
    let first = first.await.unwrap();
    assert_ne!(first.header("x-openlambda-worker"), places[0]);
    lb.nothing_left().await;
    for real in &workers {
        real.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_bound_late_are_all_answered_and_no_place_is_left() {
    let lb = Lb::late(FOR_EVER).await;
    let workers = [lb.worker("a").await, lb.worker("b").await, lb.worker("c").await];
    let ran = Arc::new(AtomicUsize::new(0));
    for name in ["f", "g"] {
        lb.publish(name, "max_instances = 2", "").await;
        let ran = ran.clone();
        lb.functions.register_async(name.parse().unwrap(), move |body: Bytes| {
            ran.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(Duration::from_micros(u64::from(body[0]) * 50)).await;
                Ok(body)
            }
        });
    }
    let call = |n: u64| {
        let body = char::from(mix(n, 1) as u8 % 100).to_string();
        let answer = lb.call(["f", "g"][n as usize % 2], &body);
        async move {
            // A few leave while they are held, or later.
            let patience = Duration::from_micros(mix(n, 2) % 20_000);
            if n % 10 == 9 {
                return tokio::time::timeout(patience, answer).await.ok();
            }
            Some(answer.await)
        }
    };
    let answers = join_all((0..400).map(|n| tokio::spawn(call(n)))).await;
    let mut starts = BTreeMap::<String, u32>::new();
    for (n, answer) in answers.into_iter().enumerate() {
        match answer.unwrap() {
            Some(answer) => {
                assert_eq!(answer.status, 200, "{}", answer.body);
                let start = answer.header("x-openlambda-start").to_owned();
                *starts.entry(start).or_default() += 1;
            }
            None => assert_eq!(n % 10, 9),
        }
    }
    // Two functions with two instances at most on each of three workers. Those for which an instance
    // was made may be served elsewhere first, so fewer calls than instances may be cold.
    let cold = starts.get("cold").copied().unwrap_or_default();
    assert!(cold <= 12 && starts["warm"] >= 300, "{starts:?}");
    assert!(ran.load(Ordering::SeqCst) <= 400, "something ran twice");
    lb.nothing_left().await;
    for real in &workers {
        real.at_rest().await;
    }
    assert_eq!(lb.stats().await["retries"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_comes_after_its_cancellation_is_cancelled_again() {
    let lb = Lb::late(FOR_EVER).await;
    let _real = lb.worker("a").await;
    let fake = lb.fake("b", OWN_503).await;
    assert_eq!(lb.call("echo", "hello").await.status, 200);
    let mut said = fake.seen.reservations.subscribe();
    let all = said.wait_for(|said| said.len() == 3);
    let all = tokio::time::timeout(Duration::from_secs(60), all).await.unwrap().unwrap().clone();
    assert_eq!(all, ["cancelled", "reserved", "cancelled"]);
    lb.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_takes_its_reservations_but_no_held_call_with_it() {
    let lb = Lb::late(FOR_EVER).await;
    let gates = lb.gated("slow").await;
    let doomed = lb.doomed("a").await;
    let call = |body: &str| tokio::spawn(lb.call("slow", body));
    let lost = call("lost");
    gates.came("lost").await;
    let real = lb.worker("b").await;
    let second = call("second");
    gates.came("second").await;
    let held: Vec<_> = (0..5).map(|_| call("held")).collect();
    eventually("places are kept", || real.worker.counts().reserved == 5).await;
    doomed.shutdown_background();
    assert_eq!(lost.await.unwrap().failure().0, 502);
    lb.state("a", "unhealthy").await;
    gates.open("second");
    gates.open("held");
    assert_eq!(second.await.unwrap().status, 200);
    for call in held {
        let answer = call.await.unwrap();
        assert_eq!((answer.status, answer.header("x-openlambda-worker")), (200, "b"));
    }
    lb.nothing_left().await;
    real.at_rest().await;
}

/// A worker dies at any moment of reservations, offers and binds.
#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_while_they_hold_offers_lose_only_what_ran() {
    let lb = Lb::late(Duration::from_millis(200)).await;
    let real = lb.worker("b").await;
    lb.publish("work", "max_instances = 2", "").await;
    lb.functions.register_async("work".parse().unwrap(), |body: Bytes| async move {
        tokio::time::sleep(Duration::from_micros(500)).await;
        Ok(body)
    });
    for round in 0..4 {
        let doomed = lb.doomed("a").await;
        let calls: Vec<_> = (0..150).map(|_| tokio::spawn(lb.call("work", "x"))).collect();
        tokio::time::sleep(Duration::from_millis(5 + mix(round, 1) % 30)).await;
        doomed.shutdown_background();
        let mut answered = 0;
        for call in calls {
            let answer = call.await.unwrap();
            let (status, code, ..) = answer.failure();
            match status {
                200 => answered += 1,
                502 => assert_eq!(code, "worker_died"),
                other => panic!("{other}: {}", answer.body),
            }
        }
        // It ran two at once, and a few more may have been on their way.
        assert!(answered >= 120, "{answered}");
        lb.nothing_left().await;
        real.at_rest().await;
        lb.state("a", "unhealthy").await;
    }
}
