//! How a process starts and ends.
//!
//! Every task is spawned through [`Lifecycle`], under a name. A task that fails, panics, or ends although nothing
//! asked it to, is a failure of the process: the others are asked to stop and the exit code says so.
//!
//! Stopping has two stages. *Soft* (a first SIGINT or SIGTERM, or a failure): tasks stop reading, finish what they
//! hold, commit and return. *Hard* (a second signal, or the deadline): tasks return at once, whatever they hold; what
//! was not committed is read again after the next start. The admin server answers until all tasks have ended.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::Exit;

/// From the soft stop to the hard one: enough to drain a full pipeline, less than what a supervisor grants.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// For tasks to notice the hard stop; what still runs then is abandoned.
const HARD_STOP_GRACE: Duration = Duration::from_secs(1);

/// Clones share everything.
#[derive(Clone, Default)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    soft: CancellationToken,
    hard: CancellationToken,
    /// All tasks have ended.
    ended: CancellationToken,
    tasks: TaskTracker,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Running tasks, so that a stop that takes long can say what it waits for.
    running: BTreeMap<u64, String>,
    next: u64,
    failure: Option<Exit>,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the process should drain and end.
    pub fn soft(&self) -> &CancellationToken {
        &self.inner.soft
    }

    /// Cancelled when the process should end at once. Never before [`Self::soft`].
    pub fn hard(&self) -> &CancellationToken {
        &self.inner.hard
    }

    /// Asks everything to drain and end.
    pub fn stop(&self) {
        self.inner.soft.cancel();
    }

    /// Asks everything to end at once.
    pub fn stop_now(&self) {
        self.inner.soft.cancel();
        self.inner.hard.cancel();
    }

    /// A failure that no task's result carries: recorded for the exit code, and everything is asked to end.
    pub fn fail(&self, name: &str, error: &anyhow::Error) {
        error!(task = name, error = format!("{error:#}"), "task failed");
        self.state().failure.get_or_insert(Exit::of(error));
        self.stop();
    }

    /// Runs a task that lives until the soft stop; its end before that is a failure.
    #[track_caller]
    pub fn spawn<E: Into<anyhow::Error>>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.spawn_as(name.into(), Ending::OnlyWhenStopped, task);
    }

    /// Runs a task that may end by itself; only an error or a panic is a failure.
    #[track_caller]
    pub fn spawn_finite<E: Into<anyhow::Error>>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.spawn_as(name.into(), Ending::Any, task);
    }

    fn spawn_as<E: Into<anyhow::Error>>(
        &self,
        name: String,
        ending: Ending,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let guard = self.enter(name, ending);
        self.inner.tasks.spawn(async move {
            let guard = guard;
            guard.end(task.await.map_err(Into::into));
        });
    }

    /// Runs blocking work on a thread of its own; like [`Self::spawn`], it lives until the soft stop, which it sees as
    /// `lifecycle.soft().is_cancelled()`.
    ///
    /// # Errors
    /// If the operating system refuses another thread.
    pub fn spawn_thread<E: Into<anyhow::Error>>(
        &self,
        name: impl Into<String>,
        work: impl FnOnce(Self) -> Result<(), E> + Send + 'static,
    ) -> std::io::Result<()> {
        let name = name.into();
        let guard = self.enter(name.clone(), Ending::OnlyWhenStopped);
        let token = self.inner.tasks.token();
        let lifecycle = self.clone();
        std::thread::Builder::new().name(name).spawn(move || {
            let guard = guard;
            guard.end(work(lifecycle).map_err(Into::into));
            drop(token);
        })?;
        Ok(())
    }

    /// Runs a task until all others have ended; what becomes of it does not matter then.
    #[expect(clippy::disallowed_methods, reason = "it must outlive the tracked tasks")]
    pub(crate) fn spawn_last(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.inner.ended.clone();
        tokio::spawn(async move { ended.run_until_cancelled(task).await });
    }

    fn enter(&self, name: String, ending: Ending) -> TaskGuard {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.running.insert(id, name.clone());
        TaskGuard { lifecycle: self.clone(), id, name, ending, result: None }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the soft stop and then for all tasks, for at most `deadline` (then hard). The exit code is that of
    /// the first failure.
    pub async fn finish(&self, deadline: Duration) -> Exit {
        self.inner.soft.cancelled().await;
        self.inner.tasks.close();
        let mut ended = pin!(self.inner.tasks.wait());
        tokio::select! {
            () = &mut ended => {}
            () = self.inner.hard.cancelled() => {}
            () = tokio::time::sleep(deadline) => {
                let running: Vec<String> = self.state().running.values().cloned().collect();
                warn!(?running, "tasks did not drain in {deadline:?}: stopping at once");
            }
        }
        self.stop_now();
        let abandoned = tokio::time::timeout(HARD_STOP_GRACE, ended).await.is_err();
        self.inner.ended.cancel();
        let mut state = self.state();
        if abandoned {
            let running: Vec<String> = state.running.values().cloned().collect();
            error!(?running, "tasks did not stop and are abandoned");
            state.failure.get_or_insert(Exit::Failure);
        }
        state.failure.unwrap_or(Exit::Success)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    OnlyWhenStopped,
    Any,
}

/// Judges the end of a task when dropped, so that a panic is judged too.
struct TaskGuard {
    lifecycle: Lifecycle,
    id: u64,
    name: String,
    ending: Ending,
    /// `None`: the task did not get to its end.
    result: Option<anyhow::Result<()>>,
}

impl TaskGuard {
    fn end(mut self, result: anyhow::Result<()>) {
        self.result = Some(result);
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.lifecycle.state().running.remove(&self.id);
        let stopping = self.lifecycle.soft().is_cancelled();
        match self.result.take() {
            Some(Ok(())) if stopping || self.ending == Ending::Any => {}
            Some(Ok(())) => {
                self.lifecycle.fail(&self.name, &anyhow::anyhow!("the task ended although nothing stopped it"));
            }
            Some(Err(error)) => self.lifecycle.fail(&self.name, &error),
            None if std::thread::panicking() => self.lifecycle.fail(&self.name, &anyhow::anyhow!("the task panicked")),
            None if stopping => {}
            None => self.lifecycle.fail(&self.name, &anyhow::anyhow!("the task was dropped before it ended")),
        }
    }
}

/// Runs a process: `start` connects and spawns the tasks, then signals, failures and ends are watched until all have
/// stopped. Errors go to the log; the exit code is 0 after a stop that was asked for.
pub fn run<F, Fut>(deadline: Duration, start: F) -> ExitCode
where
    F: FnOnce(Lifecycle) -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot start threads");
            return Exit::Failure.into();
        }
    };
    let lifecycle = Lifecycle::new();
    let exit = runtime.block_on(async {
        lifecycle.spawn_last(watch_signals(lifecycle.clone()));
        lifecycle.spawn_finite("start", start(lifecycle.clone()));
        lifecycle.finish(deadline).await
    });
    runtime.shutdown_timeout(Duration::ZERO);
    exit.into()
}

async fn watch_signals(lifecycle: Lifecycle) {
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => {
            return lifecycle.fail("signals", &anyhow::Error::new(error).context("listen for signals"));
        }
    };
    loop {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        if lifecycle.soft().is_cancelled() {
            warn!(signal = name, "stopping at once");
            lifecycle.stop_now();
        } else {
            info!(signal = name, "stopping; a second signal stops at once");
            lifecycle.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_stop_that_was_asked_for_drains_and_exits_with_0() {
        let lifecycle = Lifecycle::new();
        let soft = lifecycle.soft().clone();
        let (drained, seen) = tokio::sync::oneshot::channel();
        lifecycle.spawn("worker", async move {
            soft.cancelled().await;
            drained.send(()).expect("the test waits");
            anyhow::Ok(())
        });
        lifecycle
            .spawn_thread("capture", |lifecycle| {
                while !lifecycle.soft().is_cancelled() {
                    std::thread::yield_now();
                }
                anyhow::Ok(())
            })
            .unwrap();
        lifecycle.stop();
        assert_eq!(lifecycle.finish(SOON).await, Exit::Success);
        seen.await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_stops_the_process_with_1() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("worker", async { anyhow::Ok(()) });
        assert_eq!(lifecycle.finish(SOON).await, Exit::Failure);
    }

    #[tokio::test]
    async fn a_finite_task_may_end_but_not_fail() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn_finite("snapshot", async { anyhow::Ok(()) });
        lifecycle.spawn_finite("start", async { Err(crate::Refusal::config("no")) });
        assert_eq!(lifecycle.finish(SOON).await, Exit::Config);
    }

    #[tokio::test]
    async fn a_panic_in_a_task_or_thread_is_a_failure() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn::<anyhow::Error>("task", async { panic!("on purpose") });
        assert_eq!(lifecycle.finish(SOON).await, Exit::Failure);
        let lifecycle = Lifecycle::new();
        lifecycle.spawn_thread::<anyhow::Error>("thread", |_| panic!("on purpose")).unwrap();
        assert_eq!(lifecycle.finish(SOON).await, Exit::Failure);
    }

    #[tokio::test]
    async fn the_deadline_turns_a_soft_stop_into_a_hard_one() {
        let lifecycle = Lifecycle::new();
        let hard = lifecycle.hard().clone();
        lifecycle.spawn("stubborn", async move {
            hard.cancelled().await;
            anyhow::Ok(())
        });
        lifecycle.stop();
        assert_eq!(lifecycle.finish(Duration::from_millis(10)).await, Exit::Success);
    }

    #[tokio::test]
    async fn a_task_that_ignores_the_hard_stop_is_abandoned_with_1() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn::<anyhow::Error>("deaf", std::future::pending());
        lifecycle.stop_now();
        assert_eq!(lifecycle.finish(SOON).await, Exit::Failure);
    }
}
