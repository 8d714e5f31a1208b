//! Creates a session, uploads a file to it, has a program turn it into another one, and downloads the result.

use std::env;
use std::error::Error;

use isol8_client::{CreateSession, ExecutionRequest, RemoteIsol8, Runtime};

const PROGRAM: &str = "
import csv, json
with open('/sandbox/people.csv') as table:
    people = list(csv.DictReader(table))
with open('/sandbox/people.json', 'w') as result:
    json.dump(people, result)
print(len(people), 'people')
";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = env::var("ISOL8_HOST").unwrap_or_else(|_| "http://127.0.0.1:3000".to_owned());
    let key = env::var("ISOL8_API_KEY")?;
    let isol8 = RemoteIsol8::new(&server, &key)?.with_session("files".parse()?);

    isol8
        .create_session(CreateSession::new(Runtime::Python))
        .await?;
    let people = "name,town\nAda,London\nKurt,Vienna\n";
    isol8.put_file("/sandbox/people.csv", people).await?;

    let mut request = ExecutionRequest::new(Runtime::Python);
    request.code = Some(PROGRAM.to_owned());
    let result = isol8.execute(request).await?;
    print!("{}{}", result.stdout, result.stderr);

    let json = isol8.get_file("/sandbox/people.json").await?;
    println!("\n{}", String::from_utf8(json)?);
    isol8.stop().await?;
    Ok(())
}
