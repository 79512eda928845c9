resource "terraform_data" "greeting" {
  input = "@TEXT@"
}

output "text" {
  value = terraform_data.greeting.output
}
