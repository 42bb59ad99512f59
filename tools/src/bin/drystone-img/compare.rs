//! `compare`.

use std::cell::RefCell;
use std::rc::Rc;

use drystone_core::job::{Compare, Comparison as Found, Doing, Statuses, Stopped, compare};
use drystone_exec_linux::Client;
use drystone_tools::img::args::CompareArgs;
use drystone_tools::img::compare::{CompareError, Comparison, SIZE_WARNING};
use drystone_tools::img::progress::Progress;
use drystone_tools::message::Failure;

use crate::image;

pub async fn run(client: &Client, args: &CompareArgs) -> Result<u8, Failure> {
    // What cannot be opened is worse than a difference, which ends with 1.
    let trouble = |failure: Failure| failure.with_code(2);
    let progress =
        Rc::new(RefCell::new(Progress::new(args.progress && !args.quiet, crate::on_terminal(), 2.0)));
    let mode = image::reading(&args.common, args.cache, args.force_share);
    let first = image::open(client, &args.first, mode).await.map_err(trouble)?;
    let second = image::open(client, &args.second, mode).await.map_err(trouble)?;
    let result = if args.strict && first.len() != second.len() {
        crate::tell(&mut progress.borrow_mut(), 0, 1);
        Ok(Comparison::SizesDiffer)
    } else {
        let nodes = (first.node(), second.node());
        let (strict, quiet) = (args.strict, args.quiet);
        let shown = Rc::clone(&progress);
        let found = client.run(move |io| async move {
            let longer = || {
                if !quiet {
                    let _ = crate::print(SIZE_WARNING);
                }
            };
            let tell = Rc::new(move |done, of| crate::tell(&mut shown.borrow_mut(), done, of));
            let statuses = Statuses::new(image::bytes_on_host);
            Ok(compare(&io, &Compare { nodes, strict, statuses: &statuses, longer: &longer }, tell).await)
        });
        let found = found.await.map_err(|error| trouble(Failure::new(error.to_string())));
        found.and_then(|found| found.map_err(|stopped| failure(&stopped, args))).map(|found| match found {
            Found::Identical => Comparison::Identical,
            // The reference names the sector that differs.
            Found::ContentDiffers(offset) => Comparison::ContentDiffers { offset: offset / 512 * 512 },
            Found::StatusDiffers(offset) => Comparison::StatusDiffers { offset },
        })
    };
    let closed = image::close(first).await.and(image::close(second).await);
    if let (Ok(comparison), false) = (&result, args.quiet) {
        crate::print(&comparison.text())?;
    }
    // The reference ends the line of the progress last.
    crate::print(progress.borrow_mut().finish())?;
    let comparison = result?;
    closed.map_err(trouble)?;
    Ok(comparison.exit_code())
}

fn failure(stopped: &Stopped, args: &CompareArgs) -> Failure {
    let source = if stopped.source_index == 0 { &args.first } else { &args.second };
    let filename = source.name.text().to_owned();
    let why = &stopped.source;
    match stopped.doing {
        Doing::Status => CompareError::Status { filename, error: why.to_string() },
        _ => {
            let error = format!("{}\n{why}", image::strerror(why));
            CompareError::Read { offset: stopped.at, filename, error }
        }
    }
    .into_failure()
}
