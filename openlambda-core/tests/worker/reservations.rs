//! Places that are kept for calls that balancers bind late.

use super::*;

impl Rig {
    /// A function with one slot, and what its reservations say.
    async fn one_slot(&self, gate: &Gate) -> wire::Reservation {
        self.functions.register_async("f".parse().unwrap(), gate.handler());
        let published = self.publish("f", "max_instances = 1", "f").await;
        wire::Reservation {
            balancer: "b1".to_owned(),
            ticket: 1,
            function: "f".parse().unwrap(),
            version: published.version,
            digest: published.digest,
            deadline_ms: 60_000,
        }
    }

    async fn reserve(&self, reservation: &wire::Reservation, ticket: u64) -> u16 {
        let body = wire::Reservation { ticket, ..reservation.clone() };
        let request = Request::post(format!("{}{}", self.url, wire::RESERVATIONS_PATH));
        self.send(request, &serde_json::to_string(&body).unwrap()).await.status
    }

    async fn unreserve(&self, ticket: u64) {
        let url = format!("{}{}/b1/{ticket}", self.url, wire::RESERVATIONS_PATH);
        assert_eq!(self.send(Request::delete(url), "").await.status, 204);
    }

    /// The call that the reservation is for.
    fn bind(
        &self,
        reservation: &wire::Reservation,
        ticket: u64,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let request = Request::post(format!("{}/run/f", self.url))
            .header(wire::DIGEST, reservation.digest.to_string())
            .header(wire::VERSION, reservation.version.0)
            .header(wire::RESERVATION, format!("b1/{ticket}"));
        self.send(request, "body")
    }

    async fn no_reservation_is_left(&self) {
        eventually("no reservation is left", || {
            let counts = self.worker.counts();
            counts.reserved + counts.offered == 0
        })
        .await;
    }
}

fn never_times_out(config: &mut WorkerConfig) {
    config.heartbeat = Duration::from_secs(3600);
    config.scheduler.offer_timeout = Duration::from_secs(3600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_offered_to_its_balancer_alone_and_its_call_gets_the_slot() {
    let mut rig = Rig::start(never_times_out).await;
    let (mut mine, mut others) = (Events::of(&rig, "b1").await, Events::of(&rig, "b2").await);
    let gate = Gate::new();
    let reservation = rig.one_slot(&gate).await;
    assert_eq!(rig.reserve(&reservation, 1).await, 204);
    assert_eq!(mine.offer().await, Some(1));
    // Others wait behind it, a second reservation first.
    assert_eq!(rig.reserve(&reservation, 2).await, 204);
    assert_eq!(rig.reserve(&reservation, 2).await, 204, "a repetition changes nothing");
    let ordinary = tokio::spawn(rig.call("f", "other"));
    eventually("it waits", || rig.worker.counts().waiting == 1).await;
    let stats = rig.send(Request::get(format!("{}/stats", rig.url)), "").await.body;
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!((&stats["counts"]["reserved"], &stats["counts"]["offered"]), (&1.into(), &1.into()));
    assert_eq!(gate.came(), 0, "the slot is held");
    gate.open();
    let answer = rig.bind(&reservation, 1).await;
    assert_eq!((answer.status, &*answer.body), (200, "body"));
    assert_eq!(answer.header("x-openlambda-start"), "cold", "the instance was made for it");
    assert_eq!(mine.offer().await, Some(2));
    let answer = rig.bind(&reservation, 2).await;
    assert_eq!(answer.header("x-openlambda-start"), "warm");
    assert_eq!(ordinary.await.unwrap().status, 200);
    assert_eq!(gate.came(), 3, "nothing ran twice");
    rig.no_reservation_is_left().await;
    rig.stop().await;
    assert_eq!((mine.offer().await, others.offer().await), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_takes_the_place_in_the_queue_of_its_reservation() {
    let rig = Rig::start(never_times_out).await;
    let _mine = Events::of(&rig, "b1").await;
    let gate = Gate::new();
    let reservation = rig.one_slot(&gate).await;
    let first = tokio::spawn(rig.call("f", ""));
    eventually("it runs", || gate.came() == 1).await;
    assert_eq!(rig.reserve(&reservation, 1).await, 204);
    let bound = tokio::spawn(rig.bind(&reservation, 1));
    let late = tokio::spawn(rig.bind(&reservation, 2));
    eventually("they wait themselves", || {
        let counts = rig.worker.counts();
        (counts.reserved, counts.waiting) == (0, 2)
    })
    .await;
    // A reservation that its own call has overtaken would hold a slot for nobody.
    assert_eq!(rig.reserve(&reservation, 2).await, 204);
    assert_eq!(rig.worker.counts().reserved, 0);
    // Too late: the call has its place.
    rig.unreserve(1).await;
    gate.open();
    for call in [first, bound, late] {
        assert_eq!(call.await.unwrap().status, 200);
    }
    rig.no_reservation_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_held_is_given_back_by_a_cancellation_and_by_the_end_of_the_stream() {
    let rig = Rig::start(never_times_out).await;
    let gate = Gate::new();
    gate.open();
    let reservation = rig.one_slot(&gate).await;
    assert_eq!(rig.reserve(&reservation, 1).await, 400, "nobody would hear of the offer");
    let mut mine = Events::of(&rig, "b1").await;
    assert_eq!(rig.reserve(&reservation, 1).await, 204);
    assert_eq!(mine.offer().await, Some(1));
    let waits = tokio::spawn(rig.call("f", ""));
    eventually("it waits", || rig.worker.counts().waiting == 1).await;
    rig.unreserve(1).await;
    assert_eq!(waits.await.unwrap().status, 200);
    rig.unreserve(1).await;

    for ticket in [2, 3] {
        assert_eq!(rig.reserve(&reservation, ticket).await, 204);
    }
    assert_eq!(mine.offer().await, Some(2));
    let newer = Events::of(&rig, "b1").await;
    drop(mine);
    let waits = tokio::spawn(rig.call("f", ""));
    eventually("it waits", || rig.worker.counts().waiting == 1).await;
    drop(newer);
    assert_eq!(waits.await.unwrap().status, 200);
    rig.no_reservation_is_left().await;
    assert_eq!(rig.bind(&reservation, 2).await.status, 200, "as any other call");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_held_for_a_short_time_only_and_a_late_call_is_like_any_other() {
    let rig = Rig::start(|config| {
        never_times_out(config);
        config.scheduler.offer_timeout = Duration::from_millis(20);
    })
    .await;
    let mut mine = Events::of(&rig, "b1").await;
    let gate = Gate::new();
    gate.open();
    let reservation = rig.one_slot(&gate).await;
    assert_eq!(rig.reserve(&reservation, 1).await, 204);
    assert_eq!(mine.offer().await, Some(1));
    assert_eq!(rig.call("f", "").await.status, 200, "it got the slot in the end");
    rig.no_reservation_is_left().await;
    assert_eq!(rig.bind(&reservation, 1).await.status, 200);
    // One whose time is up waits no more.
    let soon = wire::Reservation { deadline_ms: 1, ..reservation };
    assert_eq!(rig.reserve(&soon, 2).await, 204);
    rig.no_reservation_is_left().await;
    assert_eq!(gate.came(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_slots_that_are_held() {
    let mut rig = Rig::start(never_times_out).await;
    let mut mine = Events::of(&rig, "b1").await;
    let reservation = rig.one_slot(&Gate::new()).await;
    for ticket in [1, 2] {
        assert_eq!(rig.reserve(&reservation, ticket).await, 204);
    }
    assert_eq!(mine.offer().await, Some(1));
    rig.stop().await;
    assert_eq!(rig.worker.counts(), Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_reservation_is_refused() {
    let rig = Rig::start(never_times_out).await;
    let _mine = Events::of(&rig, "b1").await;
    rig.function("f", "", echo).await;
    let url = |path: &str| format!("{}{path}", rig.url);
    let post = |path: &str| Request::post(url(path));
    for (request, body, status) in [
        (post("/internal/reservations"), "{}", 400),
        (post("/internal/reservations/b1/1"), "{}", 404),
        (Request::get(url("/internal/reservations")), "", 404),
        (Request::delete(url("/internal/reservations/b1")), "", 400),
        (Request::get(url("/internal/events?balancer=a%20b")), "", 400),
        (post("/run/f").header(wire::RESERVATION, "b1"), "", 400),
        (post("/run/f").header(wire::RESERVATION, "b1/7"), "", 200),
    ] {
        assert_eq!(rig.send(request, body).await.status, status, "{body}");
    }
}
