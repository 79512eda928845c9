# A command that terraform runs, and its child; terraform itself kills only the command.
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    command = "sleep @SECONDS@ & sleep @SECONDS@; true"
  }
}
