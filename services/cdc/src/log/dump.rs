//! `cdc log dump`.

use std::io::{self, BufWriter, StdoutLock, Write as _};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use cdc_commitlog::{Fence, ReadOptions, ReadOutcome};
use cdc_model::SegmentPosition;
use cdc_runtime::{Exit, Refusal};
use clap::{Args, ValueEnum};

use super::input::{InputArgs, Open, Settled, Start, Tail, describe, explain};
use super::reading::{Decoded, Reading, Wanted};
use super::schema::SourceArgs;
use super::{json, text};
use crate::cli::complain;

/// Between two looks at a segment nothing was written to.
const POLL: Duration = Duration::from_millis(50);

#[derive(Args, Debug)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    wanted: Wanted,
    /// Only what stands behind this position, as the output shows it; with --follow also `end`: only what is written from now on
    #[arg(long, value_name = "POS")]
    from: Option<Start>,
    /// Go on with what is written, into these segments and the next ones of their folder, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    #[arg(long, short, value_enum, default_value_t = Form::Json)]
    output: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Form {
    /// An object per line
    Json,
    /// A line for people
    Text,
}

pub(super) fn run(args: &DumpArgs) -> anyhow::Result<ExitCode> {
    if args.from == Some(Start::End) && !args.follow {
        let message = "--from end shows what is written from now on: give --follow, too".to_owned();
        return Err(Refusal { exit: Exit::Usage, message }.into());
    }
    let options = args.input.options()?;
    let printer = Printer {
        out: BufWriter::with_capacity(1 << 16, io::stdout().lock()),
        line: Vec::new(),
        form: args.output,
        behind: match args.from {
            Some(Start::Position(at)) => at,
            Some(Start::End) | None => SegmentPosition::START,
        },
        muted: args.from == Some(Start::End),
        failed: None,
    };
    let mut dump = Dump { reading: Reading::new(args.source.history()?, args.wanted.clone()), printer, unread: false };
    let done = if args.follow { dump.follow(args, &options) } else { dump.once(args, &options) };
    let done = done.and_then(|()| Ok(dump.printer.out.flush()?));
    match done {
        // Whoever read the output has enough of it.
        Err(error) if is_broken_pipe(&error) => Ok(Exit::Success.into()),
        done => {
            dump.reading.finish();
            done.map(|()| dump.exit().into())
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

struct Dump {
    reading: Reading,
    printer: Printer,
    /// A segment could not be read at all.
    unread: bool,
}

impl Dump {
    fn exit(&self) -> Exit {
        match (self.unread, self.reading.damaged) {
            (true, _) => Exit::Failure,
            (false, true) => Exit::Damage,
            (false, false) => Exit::Success,
        }
    }

    fn once(&mut self, args: &DumpArgs, options: &ReadOptions) -> anyhow::Result<()> {
        for file in args.input.segments()? {
            // The schema of what is shown may stand in what is not.
            if args.source.is_given() && file.id < self.printer.behind.segment {
                continue;
            }
            match Open::existing(&file, options) {
                Ok(None) => {}
                Ok(Some(mut open)) => {
                    let finished = open.is_finished();
                    while self.step(&mut open, Fence::Marker, finished)?.0 == ReadOutcome::More {}
                }
                Err(sentence) => self.unread(&sentence),
            }
        }
        Ok(())
    }

    fn follow(&mut self, args: &DumpArgs, options: &ReadOptions) -> anyhow::Result<()> {
        let (folder, mut first) = args.input.folder()?;
        if args.source.is_given() {
            first = first.max(self.printer.behind.segment);
        }
        let stop = stop_signal()?;
        let mut tail = Tail::new(folder, first);
        loop {
            let mut faults = Vec::new();
            tail.look(options, &mut |error| faults.push(explain(error)))?;
            faults.iter().for_each(|fault| self.unread(fault));
            let mut read = 0;
            let mut ended = Vec::new();
            for (index, (open, Settled(finished))) in tail.open.iter_mut().enumerate() {
                // Behind the last marker of a segment that is complete, rubbish is normal.
                let fence = if *finished || open.reader.is_transformed() { Fence::Marker } else { Fence::Live };
                let (outcome, entries) = self.step(open, fence, *finished)?;
                read += entries;
                match outcome {
                    ReadOutcome::End => ended.push(index),
                    // What follows in the log is read later.
                    ReadOutcome::More => break,
                    ReadOutcome::Waiting => {}
                }
            }
            ended.iter().rev().for_each(|index| drop(tail.open.remove(*index)));
            let wait = if read > 0 || !ended.is_empty() {
                Duration::ZERO
            } else {
                self.printer.muted = false;
                self.printer.out.flush()?;
                POLL
            };
            if stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
        }
    }

    /// Reads and prints a piece; how it ended, and the entries read.
    fn step(&mut self, open: &mut Open, fence: Fence, finished: bool) -> anyhow::Result<(ReadOutcome, u64)> {
        let (reading, printer) = (&mut self.reading, &mut self.printer);
        let report = open.step(fence, finished, &mut |format, at, payload| {
            printer.print(&reading.entry(format, at, payload));
        });
        if let Some(error) = self.printer.failed.take() {
            return Err(error.into());
        }
        match report {
            Ok((outcome, entries, damage)) => {
                damage.iter().for_each(|damage| self.reading.damage(&describe(damage)));
                Ok((outcome, entries))
            }
            // The file cannot be read beyond; the others can.
            Err(error) => {
                self.reading.damage(&explain(&error));
                Ok((ReadOutcome::End, 0))
            }
        }
    }

    fn unread(&mut self, sentence: &str) {
        self.unread = true;
        complain(sentence);
    }
}

struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    line: Vec<u8>,
    form: Form,
    /// Nothing up to here is shown.
    behind: SegmentPosition,
    /// Nothing is shown yet.
    muted: bool,
    failed: Option<io::Error>,
}

impl Printer {
    fn print(&mut self, decoded: &Decoded<'_>) {
        if self.muted || decoded.at <= self.behind || self.failed.is_some() {
            return;
        }
        for (table, truncation) in &decoded.truncations {
            match self.form {
                Form::Json => json::write_truncation(&mut self.line, decoded.at, table, truncation),
                Form::Text => text::write_truncation(&mut self.line, decoded.at, table, truncation),
            }
            self.end_line();
        }
        for change in decoded.changes {
            match self.form {
                Form::Json => json::write_change(&mut self.line, change),
                Form::Text => text::write_change(&mut self.line, change),
            }
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        self.line.push(b'\n');
        if let Err(error) = self.out.write_all(&self.line) {
            self.failed.get_or_insert(error);
        }
        self.line.clear();
    }
}

/// Gets a message at the first SIGINT or SIGTERM.
fn stop_signal() -> io::Result<Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    drop(entered);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        // Nobody listens any more: the process is about to end anyway.
        sender.send(()).ok();
    });
    Ok(receiver)
}
