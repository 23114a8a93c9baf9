//! The task that logs in, renews and replaces.
//!
//! Each thing it holds is a *duty* with a time of its own: our token, and each login. Before any of them is seen to, and
//! every few seconds, it looks whether Vault is sealed; while it is, or does not answer, all of them wait. A duty that fails
//! by itself is tried again with growing pauses, and the others go on.
//!
//! What is granted for a time is renewed when two thirds of it are over. A renewal that grants less than was asked for has
//! met the longest time allowed: then another is taken at once, while the old one has a third of its time left for work that
//! is under way. A lease dies with the token it was issued under, so after each new login to Vault all leases are replaced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_runtime::Lifecycle;
use cdc_runtime::config::Fault;
use cdc_runtime::credentials::{Credentials, Doubt, Issuer, credentials};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::client::{Client, Grant};
use crate::config::{Method, Settings};
use crate::state::{News, end_of};
use crate::{VaultConfig, VaultError, VaultState};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Someone unseals Vault and expects that things go on.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// While the same fails again and again.
const REMINDER: Duration = Duration::from_secs(60);
/// Between two logins that are issued because the one before was doubted: each is a role in the database.
const DOUBT_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_DOUBT_PAUSE: Duration = Duration::from_secs(300);
/// How long something that does not expire is left alone.
const FOR_EVER: Duration = Duration::from_secs(3600);
/// Vault counts in seconds.
const ROUNDING: Duration = Duration::from_secs(1);

/// What was asked for in the configuration.
#[derive(Clone, Default, Debug)]
pub struct Logins {
    pub cassandra: Option<Credentials>,
    pub kafka: Option<Credentials>,
    pub postgres: Option<Credentials>,
}

/// Vault, as the rest of the process sees it.
#[derive(Clone)]
pub struct Vault {
    pub logins: Logins,
    pub state: VaultState,
    rounds: watch::Receiver<u64>,
}

impl Vault {
    /// Begins to log in; the logins are there once they are. Ends with the soft stop.
    ///
    /// # Errors
    /// If the section is faulty, or its `ca_file` cannot be read.
    pub fn start(config: &VaultConfig, lifecycle: &Lifecycle) -> Result<Self, Vec<Fault>> {
        let settings = config.resolve(|name| std::env::var(name).ok())?;
        let client = Client::new(&settings).map_err(|error| vec![Fault::new("vault", error.to_string())])?;
        let state = VaultState::new(client.address());
        let wake = Arc::new(Notify::new());
        let mut duties = vec![Duty::new("vault", client.address(), Task::Token(None))];
        let mut logins = Logins::default();
        let wanted = [
            ("cassandra", &config.cassandra, &mut logins.cassandra),
            ("kafka", &config.kafka, &mut logins.kafka),
            ("postgres", &config.postgres, &mut logins.postgres),
        ];
        for (name, path, login) in wanted {
            let Some(path) = path else { continue };
            let (issuer, credentials) = credentials(Arc::clone(&wake));
            *login = Some(credentials);
            duties.push(Duty::new(name, path, Task::of(path, issuer)));
        }
        for duty in &duties {
            state.expect(duty.name, &duty.path);
        }
        let (round, rounds) = watch::channel(0);
        let look = Look { due: Instant::now(), failures: 0, said: None };
        let keeper = Keeper { settings, client, state: state.clone(), duties, look, wake, round };
        let soft = lifecycle.soft().clone();
        lifecycle.spawn("vault", async move {
            soft.run_until_cancelled(keeper.run()).await;
            anyhow::Ok(())
        });
        Ok(Self { logins, state, rounds })
    }

    /// Waits until every login is there, however long it takes.
    pub async fn issued(&self) {
        let Logins { cassandra, kafka, postgres } = &self.logins;
        for login in [cassandra, kafka, postgres].into_iter().flatten() {
            login.first().await;
        }
    }

    /// As [`Self::issued`], for one that does not wait for others to act.
    ///
    /// # Errors
    /// Why a login is not there after everything was tried once.
    pub async fn issued_at_once(&mut self) -> Result<(), String> {
        // It only fails when the task has ended, and then the state says why.
        drop(self.rounds.wait_for(|rounds| *rounds > 0).await);
        self.state.ready()
    }
}

struct Keeper {
    settings: Settings,
    client: Client,
    state: VaultState,
    /// The first is our token.
    duties: Vec<Duty>,
    look: Look,
    wake: Arc<Notify>,
    round: watch::Sender<u64>,
}

/// At the seal.
struct Look {
    due: Instant,
    failures: u32,
    said: Option<Instant>,
}

struct Duty {
    name: &'static str,
    path: String,
    task: Task,
    due: Instant,
    failures: u32,
    said: Option<Instant>,
}

enum Task {
    Token(Option<Held>),
    /// A key-value secret, read again and again.
    Secret(Issuer),
    Lease(Lease),
}

/// What was granted at first and last, and when to ask for more.
#[derive(Clone, Copy)]
struct Held {
    first: Grant,
    last: Grant,
    renew_at: Instant,
}

impl Held {
    fn new(grant: Grant) -> Self {
        Self { first: grant, last: grant, renew_at: Instant::now() + two_thirds(grant) }
    }

    fn renewed(self, last: Grant) -> Self {
        // What has an end has one, even if less than a second is left.
        let ttl = if self.first.ttl.is_zero() { last.ttl } else { last.ttl.max(ROUNDING) };
        Self { first: self.first, ..Self::new(Grant { ttl, ..last }) }
    }

    /// Not one that has met the longest time allowed.
    fn is_full(&self, grant: Grant) -> bool {
        grant.ttl + ROUNDING >= self.first.ttl
    }
}

/// What came of seeing to a duty: what is granted, for a time or not.
struct Outcome {
    news: News,
    grant: Option<Grant>,
    due: Option<Instant>,
}

struct Lease {
    issuer: Issuer,
    held: Option<(String, Held)>,
    /// Renewing it is not enough.
    replace: bool,
    doubts: u32,
    doubted: Option<Instant>,
}

impl Task {
    fn of(path: &str, issuer: Issuer) -> Self {
        match VaultConfig::is_leased(path) {
            true => Self::Lease(Lease { issuer, held: None, replace: false, doubts: 0, doubted: None }),
            false => Self::Secret(issuer),
        }
    }
}

impl Duty {
    fn new(name: &'static str, path: &str, task: Task) -> Self {
        Self { name, path: path.to_owned(), task, due: Instant::now(), failures: 0, said: None }
    }

    /// Heeds what users of the login have met.
    fn hear(&mut self) {
        let Task::Lease(lease) = &mut self.task else { return };
        let Some(doubt) = lease.issuer.take_doubt() else { return };
        let pause = DOUBT_PAUSE.saturating_mul(1 << lease.doubts.min(8)).min(LONGEST_DOUBT_PAUSE);
        let now = Instant::now();
        match lease.doubted {
            Some(last) if now < last + pause => self.due = self.due.min(last + pause),
            Some(last) if now < last + 2 * LONGEST_DOUBT_PAUSE => (lease.doubts, self.due) = (lease.doubts + 1, now),
            _ => (lease.doubts, self.due) = (0, now),
        }
        if self.due <= now {
            lease.doubted = Some(now);
        }
        lease.replace |= doubt == Doubt::Refused;
        warn!(credential = self.name, path = self.path, "a server doubts the login from Vault: {doubt:?}");
    }
}

impl Keeper {
    async fn run(mut self) {
        loop {
            self.duties.iter_mut().for_each(Duty::hear);
            let now = Instant::now();
            let is_due =
                self.look.due <= now || (self.look.failures == 0 && self.duties.iter().any(|duty| duty.due <= now));
            if is_due {
                self.look().await;
                if self.look.failures == 0 {
                    for index in 0..self.duties.len() {
                        if self.duties[index].due <= Instant::now() {
                            self.see_to(index).await;
                        }
                    }
                }
                self.round.send_modify(|round| *round += 1);
            }
            let next = match self.look.failures {
                0 => self.duties.iter().map(|duty| duty.due).fold(self.look.due, Instant::min),
                _ => self.look.due,
            };
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    async fn look(&mut self) {
        let looked = self.client.look_at_seal().await;
        self.state.looked(looked.as_ref().err());
        let look = &mut self.look;
        match looked {
            Ok(()) => {
                if look.failures > 0 {
                    info!(address = self.client.address(), "Vault works again");
                    // At once, what it kept from being done.
                    for duty in self.duties.iter_mut().filter(|duty| duty.failures > 0) {
                        duty.due = Instant::now();
                    }
                }
                (look.failures, look.said, look.due) = (0, None, Instant::now() + self.settings.refresh);
            }
            Err(error) => {
                look.failures += 1;
                let wait = pause(look.failures);
                look.due = Instant::now() + wait;
                say(&error, self.client.address(), look.failures, wait, &mut look.said);
            }
        }
    }

    async fn see_to(&mut self, index: usize) {
        let has_token = matches!(&self.duties[0].task, Task::Token(Some(_)));
        if index > 0 && !has_token {
            // With the next login to Vault.
            self.duties[index].due = self.duties[0].due + Duration::from_millis(1);
            return;
        }
        let Self { client, settings, duties, state, .. } = self;
        let duty = &mut duties[index];
        let outcome = match &mut duty.task {
            Task::Token(held) => token(client, settings, held).await,
            Task::Secret(issuer) => client.read_pair(&duty.path).await.map(|pair| {
                let news = if issuer.publish(pair.username, pair.password) { News::Issued } else { News::Same };
                Outcome { news, grant: None, due: None }
            }),
            Task::Lease(lease) => lease_of(client, lease, &duty.path).await,
        };
        match outcome {
            Ok(Outcome { news, grant, due }) => {
                state.granted(duty.name, grant.and_then(|grant| end_of(grant.ttl)), news);
                let refresh = Instant::now() + settings.refresh;
                duty.due = due.unwrap_or(refresh);
                // An agent may replace the file, or someone revoke it.
                if index == 0 && matches!(settings.method, Method::Token(_)) {
                    duty.due = duty.due.min(refresh);
                }
                if news == News::Issued {
                    let seconds = grant.map(|grant| grant.ttl.as_secs());
                    info!(credential = duty.name, path = duty.path, seconds, "Vault has given a login");
                }
                (duty.failures, duty.said) = (0, None);
                if index == 0 && news == News::Issued {
                    self.after_token();
                }
            }
            Err(error) => {
                let is_denied = matches!(error, VaultError::Denied { .. });
                duty.failures += 1;
                let wait = pause(duty.failures);
                duty.due = Instant::now() + wait;
                self.state.failed(duty.name, &error, duty.due);
                say(&error, &duty.path, duty.failures, wait, &mut duty.said);
                // Perhaps it is our token that is of no more use.
                if is_denied && index > 0 && self.client.look_at_token().await.is_err_and(|error| error.is_login()) {
                    self.duties[0].task = Task::Token(None);
                    self.duties[0].due = Instant::now();
                }
            }
        }
    }

    /// What was issued under an older token ends with it.
    fn after_token(&mut self) {
        for duty in &mut self.duties[1..] {
            duty.due = Instant::now();
            if let Task::Lease(lease) = &mut duty.task {
                lease.replace = lease.held.is_some();
            }
        }
    }
}

/// Renews our token, or logs in anew.
async fn token(client: &mut Client, settings: &Settings, held: &mut Option<Held>) -> Result<Outcome, VaultError> {
    let given = match &settings.method {
        Method::Token(token) => Some(token.now()),
        Method::AppRole(_) | Method::Kubernetes(_) => None,
    };
    let is_same = given.as_ref().is_none_or(|token| client.has_token(token));
    if let Some(now) = held.filter(|_| is_same) {
        if given.is_some() && Instant::now() < now.renew_at {
            let left = client.look_at_token().await.inspect_err(|_| *held = None)?;
            return Ok(Outcome { news: News::Same, grant: Some(left), due: Some(now.renew_at) });
        }
        let renewed = match now.last.renewable {
            true => match client.renew_token().await {
                Ok(grant) => Some(grant),
                Err(error) if error.is_refusal() => None,
                Err(error) => return Err(error),
            },
            false => None,
        };
        // One that was given is used to its end.
        if let Some(last) = renewed.filter(|last| now.is_full(*last) || given.is_some()) {
            let renewed = now.renewed(last);
            *held = Some(renewed);
            return Ok(Outcome { news: News::Renewed, grant: Some(renewed.last), due: Some(renewed.renew_at) });
        }
    }
    let was_held = held.is_some() && is_same;
    let grant = client.log_in(&settings.method).await.inspect_err(|error| {
        if error.is_refusal() || error.is_login() {
            *held = None;
        }
    })?;
    let new = Held::new(grant);
    *held = Some(new);
    let news = if was_held && given.is_some() { News::Same } else { News::Issued };
    Ok(Outcome { news, grant: Some(grant), due: Some(new.renew_at) })
}

/// Renews a lease, or takes another.
async fn lease_of(client: &Client, lease: &mut Lease, path: &str) -> Result<Outcome, VaultError> {
    if let Some((id, held)) = lease.held.as_mut().filter(|_| !lease.replace)
        && held.last.renewable
    {
        match client.renew_lease(id, held.first.ttl).await {
            Ok(grant) if held.is_full(grant) => {
                *held = held.renewed(grant);
                return Ok(Outcome { news: News::Renewed, grant: Some(grant), due: Some(held.renew_at) });
            }
            Ok(_) => {}
            Err(error) if error.is_refusal() => {}
            Err(error) => return Err(error),
        }
    }
    // Until it is done: what is at its end is not renewed again.
    lease.replace = lease.held.is_some();
    let leased = client.issue(path).await?;
    lease.issuer.publish(leased.pair.username, leased.pair.password);
    let held = Held::new(leased.grant);
    lease.held = Some((leased.lease_id, held));
    lease.replace = false;
    Ok(Outcome { news: News::Issued, grant: Some(leased.grant), due: Some(held.renew_at) })
}

/// Not all processes at once; of what does not end, often enough to notice that it has.
fn two_thirds(grant: Grant) -> Duration {
    let ttl = if grant.ttl.is_zero() { FOR_EVER } else { grant.ttl };
    ttl.mul_f64(rand::random_range(0.6..0.667))
}

fn pause(failures: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LONGEST_PAUSE);
    longest.mul_f64(rand::random_range(0.75..1.0))
}

/// Each step of the pauses, and then now and then.
fn say(error: &VaultError, path: &str, attempt: u32, wait: Duration, said: &mut Option<Instant>) {
    let grows = FIRST_PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(8)) <= LONGEST_PAUSE;
    if !grows && said.is_some_and(|said| said.elapsed() < REMINDER) {
        return;
    }
    *said = Some(Instant::now());
    let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    warn!(
        error_type = "VaultConnectionError",
        path,
        sealed = error.sealed(),
        attempt,
        next_attempt_in_ms = milliseconds,
        "{error}; what was issued counts on while it is valid"
    );
}
